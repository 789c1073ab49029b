"""Few rows times a large matrix, as decoding multiplies: bound by reading the matrix."""

import jax
import jax.numpy as jnp

from pallas_kernels import choose


def skinny_matmul(x: jax.Array, w: jax.Array, *, gated: bool = False, dtype: jnp.dtype | None = None) -> jax.Array:
    """Returns x @ w, accumulated in float32, [M, N] in `dtype` or x's own.

    x: [M, K]; w: [K, N] of x's type. gated: w holds two matrices side by side, a gate's and another's, and the result
    is silu(x @ gate) * (x @ other), [M, N/2], multiplied in x's type as two matmuls would be.
    """
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0] or x.dtype != w.dtype or (gated and w.shape[1] % 2):
        raise ValueError(f"skinny_matmul: x {x.dtype}{x.shape} does not fit w {w.dtype}{w.shape}, gated={gated}")
    result: jax.Array = choose.run(
        "skinny_matmul", ("triton", "reference"), x, w, gated=gated, dtype=jnp.dtype(dtype or x.dtype)
    )
    return result
