"""Shares ragged rows out over a static number of work items, on the device.

Plain XLA on [R]-sized integers: the layers of a step ask for the same schedule and XLA computes it once.
"""

import jax
import jax.numpy as jnp


def share_out(counts: jax.Array, items: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Deals items to rows in order.

    counts: [R] int32, the items each row takes; items: at least their sum.
    Returns row [items], the row of each item, -1 for those left over; place [items], its number within its row;
    first [R + 1], the first item of each row, at the end their sum; all int32.
    """
    ends = jnp.cumsum(counts, dtype=jnp.int32)
    first = jnp.concatenate([jnp.zeros((1,), jnp.int32), ends])
    item = jnp.arange(items, dtype=jnp.int32)
    row = jnp.searchsorted(ends, item, side="right", method="compare_all").astype(jnp.int32)
    place = item - first[row]
    return jnp.where(row < counts.shape[0], row, -1), place, first
