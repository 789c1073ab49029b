"""Attention within whole ragged sequences, without a cache: what encoders and embedding models run."""

import jax
import jax.numpy as jnp

from pallas_kernels import choose


def ragged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_start: jax.Array,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    soft_cap: float | None = None,
    position_bias: jax.Array | None = None,
) -> jax.Array:
    """Attends each row's tokens to those of the same row.

    q: [T, H, D]; k, v: [T, KH, D], H a multiple of KH; query_start: [R + 1] int32, row r being the tokens
    query_start[r] to query_start[r + 1]. Token i of a row sees its token j where j <= i, if causal, and where
    |i - j| < window, if given. Scores are scale * q.k, then soft_cap * tanh(scores / soft_cap) if given.
    position_bias: [H, 2 * W + 1] float32, adds to them the number at clip(j - i, -W, W) + W (T5, Raffel et al. 2020).

    Returns [T, H, D] in q.dtype; zeros for tokens behind query_start[R], whose keys and values are not read into any
    result. Work grows with the sum of the squares of the rows' lengths, with a window with their sum.
    """
    _, heads, dim = q.shape
    if k.shape != v.shape or k.shape[::2] != (q.shape[0], dim) or heads % k.shape[1]:
        raise ValueError(f"ragged_attention: q {q.shape} does not fit k {k.shape}, v {v.shape}")
    if window is not None and window < 1:
        raise ValueError(f"ragged_attention: window={window} must be at least 1, or None for full attention")
    if position_bias is not None and (position_bias.shape[:-1] != (heads,) or not position_bias.shape[-1] % 2):
        raise ValueError(
            f"ragged_attention: position_bias {position_bias.shape} must be ({heads}, 2 * W + 1): by distance, for"
            " keys before the query, its own and those behind it"
        )
    if window is not None:  # no longer than any row: kernels add it to positions
        window = min(window, q.shape[0])
    result: jax.Array = choose.run(
        "ragged_attention",
        ("triton", "reference"),
        q,
        k,
        v,
        query_start,
        scale=scale,
        causal=causal,
        window=window,
        soft_cap=soft_cap,
        position_bias=None if position_bias is None else jnp.asarray(position_bias, jnp.float32),
    )
    return result
