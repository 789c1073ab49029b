"""Root-mean-square normalisation (Zhang and Sennrich 2019)."""

import jax

from pallas_kernels import choose


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Scales each vector to unit root mean square, then by weight; float32 inside.

    x: [..., E]; weight: [E]; eps is added to the mean square. Returns [..., E] in x.dtype.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: weight {weight.shape} must be {x.shape[-1:]}, the last axis of x {x.shape}")
    result: jax.Array = choose.run("rms_norm", ("reference",), x, weight, eps)
    return result
