"""ragged_attention in plain XLA: paged_attention's tiles and blocks, over keys and values that lie in order."""

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.reference import BLOCK_TOKENS, attend_rows


def ragged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_start: jax.Array,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    position_bias: jax.Array | None,
) -> jax.Array:
    """See pallas_kernels.ragged_attention."""
    tokens, kv_heads, dim = k.shape
    span = min(tokens, BLOCK_TOKENS)

    def read(row: jax.Array, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = query_start[row][:, None] + block * span + jnp.arange(span, dtype=jnp.int32)[None, :]
        index = jnp.minimum(index, tokens - 1)
        return k[index], v[index]

    return attend_rows(
        q,
        read,
        query_start,
        query_start[1:] - query_start[:-1],
        span=span,
        blocks=-(-tokens // span),
        kv_heads=kv_heads,
        value_dim=dim,
        scale=scale,
        causal=causal,
        window=window,
        soft_cap=soft_cap,
        position_bias=position_bias,
        furthest=0 if position_bias is None else position_bias.shape[1] // 2,
    )
