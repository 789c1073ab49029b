"""Rotary position embedding (Su et al. 2021), in the half-split layout of GPT-NeoX and Llama checkpoints."""

import jax

from pallas_kernels import choose


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair (x[..., i], x[..., i + D/2]) by its token's angle; float32 inside.

    x: [T, H, D]; cos, sin: [T, D/2] of each token's angles. Returns [T, H, D] in x.dtype.
    """
    tokens, _, dim = x.shape
    if dim % 2 or cos.shape != (tokens, dim // 2) or sin.shape != cos.shape:
        raise ValueError(f"rope: x {x.shape} needs cos and sin of [T, D/2], got {cos.shape} and {sin.shape}")
    result: jax.Array = choose.run("rope", ("reference",), x, cos, sin)
    return result
