"""Multi-head latent attention (DeepSeek-V2, 2024) with absorbed projections, over paged latents."""

import jax

from pallas_kernels import choose


def mla_attention(
    q: jax.Array,
    latent_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    rank: int,
    scale: float,
    decode: bool = False,
) -> jax.Array:
    """Attends each row's queries to that row's pages, which already hold this step's latents.

    q: [T, H, R + P], each head's query times its up-projection of keys, then its rotated part;
    latent_pages: [pages, page, R + P], a token's normalised latent, then its rotated key, shared by all heads;
    rank: R. page_table [rows, MP], query_start [rows + 1], kv_len [rows], causality, padding and decode are those of
    paged_attention.

    Returns [T, H, R] in q.dtype: the latents a head attends to, for its up-projection of values to be applied.
    """
    tokens, _, width = q.shape
    rows = page_table.shape[0]
    if latent_pages.ndim != 3 or latent_pages.shape[2] != width or not 0 < rank <= width:
        raise ValueError(f"mla_attention: q {q.shape} does not fit latents {latent_pages.shape} of rank {rank}")
    if query_start.shape != (rows + 1,) or kv_len.shape != (rows,) or (decode and tokens != rows):
        raise ValueError(
            f"mla_attention: q {q.shape}, page_table {page_table.shape}, query_start {query_start.shape} and"
            f" kv_len {kv_len.shape} disagree about the rows"
        )
    result: jax.Array = choose.run(
        "mla_attention",
        ("triton", "reference"),
        q,
        latent_pages,
        page_table,
        query_start,
        kv_len,
        rank=rank,
        scale=scale,
        decode=decode,
    )
    return result
