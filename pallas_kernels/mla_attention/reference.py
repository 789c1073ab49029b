"""mla_attention as attention of many query heads over one head of keys, whose beginnings are the values."""

import jax

from pallas_kernels.paged_attention.reference import attend_pages


def mla_attention(
    q: jax.Array,
    latent_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    rank: int,
    scale: float,
    decode: bool,
) -> jax.Array:
    """See pallas_kernels.mla_attention."""

    def read(table: jax.Array) -> tuple[jax.Array, jax.Array]:
        latents = latent_pages[table].reshape(table.shape[0], -1, 1, latent_pages.shape[2])
        return latents, latents[..., :rank]

    return attend_pages(
        q,
        read,
        page_table,
        query_start,
        kv_len,
        page=latent_pages.shape[1],
        kv_heads=1,
        value_dim=rank,
        scale=scale,
        decode=decode,
    )
