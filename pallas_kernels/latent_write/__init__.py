"""Writes a step's latents into the paged pool of multi-head latent attention."""

import jax

from pallas_kernels import choose


def latent_write(latent_pages: jax.Array, latents: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the pool with token t's latent at index[t]; in place when the pool is donated.

    latent_pages: [P, page, W]; latents: [T, W]; index: [T] int32, page * page_size + offset.
    Tokens that share an index (padding, all sent to page 0) leave any one of their values there.
    """
    if latents.shape[1:] != latent_pages.shape[2:] or index.shape != latents.shape[:1]:
        raise ValueError(
            f"latent_write: latents {latents.shape} and index {index.shape} do not fit the pool {latent_pages.shape}"
        )
    result: jax.Array = choose.run("latent_write", ("triton", "reference"), latent_pages, latents, index)
    return result
