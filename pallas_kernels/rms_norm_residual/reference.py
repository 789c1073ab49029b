"""rms_norm_residual as its parts."""

import jax

from pallas_kernels.rms_norm.reference import rms_norm


def rms_norm_residual(x: jax.Array, residual: jax.Array, weight: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.rms_norm_residual."""
    total = residual + x
    return rms_norm(total, weight, eps), total
