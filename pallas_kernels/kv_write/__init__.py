"""Writes a step's keys and values into the paged pools."""

import jax

from pallas_kernels import choose


def kv_write(
    k_pages: jax.Array, v_pages: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the pools with token t's keys and values at index[t]; in place when the pools are donated.

    k_pages, v_pages: [P, page, KH, D]; k, v: [T, KH, D]; index: [T] int32, page * page_size + offset.
    Tokens that share an index (padding, all sent to page 0) leave any one of their values there.
    """
    if k.shape[1:] != k_pages.shape[2:] or v.shape[1:] != v_pages.shape[2:] or index.shape != k.shape[:1]:
        raise ValueError(
            f"kv_write: k {k.shape}, v {v.shape}, index {index.shape} do not fit pools {k_pages.shape}, {v_pages.shape}"
        )
    result: tuple[jax.Array, jax.Array] = choose.run("kv_write", ("triton", "reference"), k_pages, v_pages, k, v, index)
    return result
