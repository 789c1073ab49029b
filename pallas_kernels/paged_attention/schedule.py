"""Shares ragged rows out over a static number of work items, on the device.

Plain XLA on [R]-sized integers: the layers of a step ask for the same schedule and XLA computes it once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def share_out(counts: jax.Array, items: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Deals items to rows in order.

    counts: [R] int32, the items each row takes; items: at least their sum.
    Returns row [items], the row of each item, -1 for those left over; place [items], its number within its row;
    first [R + 1], the first item of each row, at the end their sum; all int32.
    """
    # A running sum as a masked sum, one fusion; jnp.cumsum becomes a scan of its own on a GPU.
    rows = jnp.arange(counts.shape[0], dtype=jnp.int32)
    ends = jnp.where(rows[None, :] <= rows[:, None], counts[None, :], 0).sum(axis=1, dtype=jnp.int32)
    first = jnp.concatenate([jnp.zeros((1,), jnp.int32), ends])
    item = jnp.arange(items, dtype=jnp.int32)
    row = jnp.searchsorted(ends, item, side="right", method="compare_all").astype(jnp.int32)
    place = item - first[row]
    return jnp.where(row < counts.shape[0], row, -1), place, first


class Tiles(NamedTuple):
    """Tiles of at most one number of tokens of one row each, [tiles] int32; held is 0 in those left over.

    row: R for padding tokens; first: the tile's first token; held: how many it has; begin, end: its row's first token
    and the one behind its last. number: [R + 2], each row's first tile.
    """

    row: jax.Array
    first: jax.Array
    held: jax.Array
    begin: jax.Array
    end: jax.Array
    number: jax.Array


def share_tiles(query_start: jax.Array, tokens: int, size: int) -> Tiles:
    """Cuts the rows query_start [R + 1] of so many tokens, padding behind them, into tiles of at most `size`."""
    # The padding tokens are one row more, so that a kernel reaches them too.
    starts = jnp.concatenate([query_start, jnp.full((1,), tokens, jnp.int32)])
    counts = (starts[1:] - starts[:-1] + size - 1) // size
    row, place, number = share_out(counts, -(-tokens // size) + counts.shape[0])
    first, begin, end = starts[row] + place * size, starts[row], starts[row + 1]
    return Tiles(row, first, jnp.where(row < 0, 0, jnp.minimum(end - first, size)), begin, end, number)


def share_keys(
    begin: jax.Array, kv_len: jax.Array, *, block: int, aim: int, least: int, capacity: int
) -> tuple[jax.Array, jax.Array]:
    """Cuts the positions begin:kv_len of each row, [R] int32 both, into about `aim` items of one number of tokens.

    That number is a multiple of block and at least `least`; capacity: the most tokens of a row. A row without positions
    takes one item, which has none, so that a program writes its result too.
    Returns work [items, 6] (row or -1, the item's first position, the one behind its last, the row's kv_len, the row's
    first item, how many it has), together so that a program waits for one load, and first [R + 1], the first item of
    each row, at the end their sum; int32.
    """
    rows = kv_len.shape[0]
    lengths = kv_len - begin
    chunk = jnp.maximum((lengths.sum(dtype=jnp.int32) + aim - 1) // aim, least)
    chunk = (chunk + block - 1) // block * block
    items = min(aim + rows, rows * -(-capacity // least))
    counts = jnp.maximum((lengths + chunk - 1) // chunk, 1)
    row, place, first = share_out(counts, items)
    start = begin[row] + place * chunk
    end = jnp.minimum(start + chunk, kv_len[row])
    return jnp.stack([row, start, end, kv_len[row], first[row], counts[row]], axis=1), first


def counters(kv_len: jax.Array, heads: int) -> jax.Array:
    """[R, heads] int32 zeros, in which a kernel counts the items of a row that are done; kv_len: [R] int32.

    An operand that the kernel writes to though XLA takes it to be read only: it must hold zeros again when the kernel
    ends, so that the layers of a step, which run one after the other, share one array that XLA makes once. It is
    reckoned from the lengths because zeros that XLA knows might be a constant, one for all programs.
    """
    return jnp.broadcast_to(jnp.minimum(kv_len, 0)[:, None], (kv_len.shape[0], heads))
