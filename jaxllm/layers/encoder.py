"""What encoders attend by, and how a sequence's hidden states become one vector."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxllm.layers.step import EncodeStep
from pallas_kernels.ragged_attention import ragged_attention


def attend_whole(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    step: EncodeStep,
    *,
    scale: float,
    window: int | None = None,
    position_bias: jax.Array | None = None,
) -> jax.Array:
    """Each sequence's tokens attend to all of it, or to those less than `window` positions away on either side.

    q: [T, H, D]; k, v: [T, KH, D] -> [T, H, D] in q.dtype. position_bias: [H, 2 * W + 1] float32; scores gain the
    number at the key's distance from the query, between -W and W.
    """
    return ragged_attention(q, k, v, step.query_start, scale=scale, window=window, position_bias=position_bias)


def pool(hidden: jax.Array, step: EncodeStep, sequence: Literal["cls", "mean", "last"]) -> jax.Array:
    """hidden [T, E] -> [R, E] float32: the first token's or the last one's, or the mean of all.

    Empty rows yield numbers that mean nothing.
    """
    start, end = step.query_start[:-1], step.query_start[1:]
    match sequence:
        case "cls":
            return hidden.at[start].get(mode="clip").astype(jnp.float32)
        case "last":
            return hidden[jnp.maximum(end - 1, jnp.int32(0))].astype(jnp.float32)
        case "mean":
            place = jnp.arange(hidden.shape[0], dtype=jnp.int32)[None, :]
            within = (start[:, None] <= place) & (place < end[:, None])
            # A product with ones and zeros, since that is exact and sums in a fixed order, as scattering does not.
            real = jnp.where((place[0] < end[-1])[:, None], hidden, jnp.zeros((), hidden.dtype))
            precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
            total = jnp.matmul(
                within.astype(hidden.dtype), real, precision=precision, preferred_element_type=jnp.float32
            )
            count = jnp.maximum(end - start, jnp.int32(1)).astype(jnp.float32)
            return total / count[:, None]
