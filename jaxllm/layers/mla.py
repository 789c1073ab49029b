"""Multi-head latent attention (DeepSeek-V2, 2024): heads share a small latent per token, which alone is cached."""

from dataclasses import dataclass, replace

import jax

from jaxllm.layers.attention import attend_dense
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.step import AnyStep, DenseStep, EncodeStep
from pallas_kernels.latent_write import latent_write
from pallas_kernels.mla_attention import mla_attention
from pallas_kernels.ragged_attention import ragged_attention


@dataclass(frozen=True, kw_only=True)
class Latent:
    """The sizes of multi-head latent attention.

    Attributes:
        q_rank: of what queries are projected from; None is the hidden state itself.
        rank: of the latent that keys and values are projected from.
        nope_dim, rope_dim: of a head's queries and keys, the part without positions and the part turned by them.
        value_dim: of a head's values.
    """

    q_rank: int | None
    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int

    @property
    def head_dim(self) -> int:
        """Of a head's queries and keys."""
        return self.nope_dim + self.rope_dim


def attend_latents(
    q: jax.Array, latents: jax.Array, step: AnyStep, cache: PagedCache | None, *, rank: int, scale: float
) -> tuple[jax.Array, PagedCache | None]:
    """Causal attention of the step's tokens to latents, over the pages with a Step, over themselves with the others.

    q: [T, H, R + P], each head's query times its up-projection of keys, then its turned part; latents: [T, R + P], a
    token's latent, then its turned key; cache: the layer's latents, or None without a Step; rank: R.
    Returns [T, H, R] in q.dtype, for the up-projection of values, and the cache with this step's latents written.
    """
    if isinstance(step, DenseStep):
        assert cache is None
        keys = latents[:, None]
        return attend_dense(q, keys, keys[..., :rank], step.batch, scale), None
    if isinstance(step, EncodeStep):
        assert cache is None
        keys = latents[:, None]
        out = ragged_attention(q, keys, keys, step.query_start, scale=scale, causal=True)
        return out[..., :rank], None
    assert cache is not None
    (pages,) = cache.pools
    pages = latent_write(pages, latents, cache.write_index)
    out = mla_attention(
        q, pages, cache.page_table, step.query_start, step.kv_len, rank=rank, scale=scale, decode=step.decode
    )
    return out, replace(cache, pools=(pages,))
