"""A residual connection's addition and the RMS norm behind it: one kernel where there is one."""

import jax

from pallas_kernels import choose


def rms_norm_residual(x: jax.Array, residual: jax.Array, weight: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Returns (rms_norm(residual + x, weight, eps), residual + x).

    x, residual: [..., E] of one type, in which their sum is kept; weight: [E]. Both results are [..., E] in that type.
    """
    if x.shape != residual.shape or x.dtype != residual.dtype or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rms_norm_residual: x {x.dtype}{x.shape} must be as residual {residual.dtype}{residual.shape},"
            f" weight {weight.shape} their last axis"
        )
    result: tuple[jax.Array, jax.Array] = choose.run(
        "rms_norm_residual", ("triton", "reference"), x, residual, weight, eps
    )
    return result
