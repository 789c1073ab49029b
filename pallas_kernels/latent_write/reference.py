"""latent_write in plain XLA: the scatter of kv_write, over one pool."""

import jax

from pallas_kernels.kv_write.reference import write


def latent_write(latent_pages: jax.Array, latents: jax.Array, index: jax.Array) -> jax.Array:
    """See pallas_kernels.latent_write."""
    # Fused with what reads it, the write of one token would make XLA copy the pool.
    return jax.lax.optimization_barrier(write(latent_pages, latents, index))
