"""kv_write in plain XLA: one scatter per pool, in place where the pool is donated."""

import jax
import jax.numpy as jnp


def kv_write(
    k_pages: jax.Array, v_pages: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.kv_write."""
    return write(k_pages, k, index), write(v_pages, v, index)


def write(pages: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """pages: [P, page, ...]; new: [T, ...]; index: [T]."""
    new = new.astype(pages.dtype)
    if index.shape == (1,):
        # Inside a loop XLA copies the whole pool for a scatter of one token, and for a slice of the reshaped pool.
        page = pages.shape[1]
        start = [index[0] // page, index[0] % page] + [jnp.int32(0)] * (pages.ndim - 2)
        return jax.lax.dynamic_update_slice(pages, new[:, None], start)
    slots = pages.reshape(-1, *pages.shape[2:])
    return slots.at[index].set(new, mode="promise_in_bounds").reshape(pages.shape)
