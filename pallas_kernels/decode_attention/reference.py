"""decode_attention as its parts."""

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.reference import paged_attention
from pallas_kernels.qk_norm_rope_kv_write.reference import qk_norm_rope_kv_write


def decode_attention(
    qkv: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    page_table: jax.Array,
    kv_len: jax.Array,
    *,
    q_weight: jax.Array | None,
    k_weight: jax.Array | None,
    eps: float,
    interleaved: bool,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    alibi_slopes: jax.Array | None,
    sinks: jax.Array | None,
    position_bias: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See pallas_kernels.decode_attention."""
    q, k_pages, v_pages = qk_norm_rope_kv_write(
        qkv, cos, sin, k_pages, v_pages, index, q_weight=q_weight, k_weight=k_weight, eps=eps, interleaved=interleaved
    )
    query_start = jnp.arange(kv_len.shape[0] + 1, dtype=jnp.int32)
    out = paged_attention(
        q, k_pages, v_pages, page_table, query_start, kv_len,
        scale=scale, causal=True, window=window, soft_cap=soft_cap, alibi_slopes=alibi_slopes, sinks=sinks,
        position_bias=position_bias, decode=True,
    )  # fmt: skip
    return out, k_pages, v_pages
