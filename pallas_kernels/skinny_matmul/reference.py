"""skinny_matmul in XLA."""

import jax
import jax.numpy as jnp


def skinny_matmul(x: jax.Array, w: jax.Array, *, gated: bool, dtype: jnp.dtype) -> jax.Array:
    """See pallas_kernels.skinny_matmul."""
    # GPUs would otherwise round float32 to TF32.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    contract = (((1,), (0,)), ((), ()))
    out = jax.lax.dot_general(x, w, contract, precision=precision, preferred_element_type=x.dtype if gated else dtype)
    if not gated:
        return out
    gate, other = jnp.split(out, 2, axis=1)
    return (jax.nn.silu(gate.astype(jnp.float32)).astype(x.dtype) * other).astype(dtype)
