"""rope in plain XLA, which fuses it into one kernel."""

import jax
import jax.numpy as jnp


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """See pallas_kernels.rope."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (jnp.broadcast_to(a.astype(jnp.float32)[:, None, :], first.shape) for a in (cos, sin))
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
