"""kv_write in plain XLA: one scatter per pool, in place where the pool is donated."""

import jax


def kv_write(
    k_pages: jax.Array, v_pages: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.kv_write."""
    return _write(k_pages, k, index), _write(v_pages, v, index)


def _write(pages: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    slots = pages.reshape(-1, *pages.shape[2:])
    return slots.at[index].set(new.astype(pages.dtype), mode="promise_in_bounds").reshape(pages.shape)
