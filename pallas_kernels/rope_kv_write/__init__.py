"""rope of queries and keys, then kv_write: one kernel where there is one."""

import jax

from pallas_kernels import choose


def rope_kv_write(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (rotated q, k_pages, v_pages), as rope(q), rope(k) and kv_write do; in place when the pools are donated.

    q: [T, H, D]; k, v: [T, KH, D]; cos, sin: [T, D/2]; k_pages, v_pages: [P, page, KH, D];
    index: [T] int32, page * page_size + offset.
    """
    tokens, _, dim = q.shape
    if dim % 2 or cos.shape != (tokens, dim // 2) or sin.shape != cos.shape:
        raise ValueError(f"rope_kv_write: q {q.shape} needs cos and sin of [T, D/2], got {cos.shape} and {sin.shape}")
    if k.shape != (tokens, *k_pages.shape[2:]) or v.shape != (tokens, *v_pages.shape[2:]) or index.shape != (tokens,):
        raise ValueError(
            f"rope_kv_write: q {q.shape}, k {k.shape}, v {v.shape}, index {index.shape} do not fit"
            f" pools {k_pages.shape}, {v_pages.shape}"
        )
    result: tuple[jax.Array, jax.Array, jax.Array] = choose.run(
        "rope_kv_write", ("triton", "reference"), q, k, v, cos, sin, k_pages, v_pages, index
    )
    return result
