"""mla_attention as attention of many query heads over one head of keys, whose beginnings are the values."""

import jax

from pallas_kernels.paged_attention.reference import attend_rows, paged


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

    span, blocks, gather = paged((latent_pages[:, :, None],), page_table)

    def read(row: jax.Array, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        (latents,) = gather(row, block)
        return latents, latents[..., :rank]

    return attend_rows(
        q,
        read,
        query_start,
        kv_len,
        span=span,
        blocks=blocks,
        kv_heads=1,
        value_dim=rank,
        scale=scale,
        decode=decode,
    )
