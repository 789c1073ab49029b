"""Attention of a decoder's tokens to a source: keys and values that an encoder made of a text of its own."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxllm.layers.cache import CrossCache
from jaxllm.layers.step import DenseStep, Step
from pallas_kernels.kv_write import kv_write
from pallas_kernels.paged_attention import paged_attention


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """What an encoder made of R sources, S tokens together.

    hidden: [S, E], source after source. query_start: [R + 1] int32, where each begins; padding stands behind the last.
    """

    hidden: jax.Array
    query_start: jax.Array


def write_source(k: jax.Array, v: jax.Array, cache: CrossCache) -> CrossCache:
    """k, v: [S, KH, D]. Returns the cache with the sources' keys and values written."""
    assert cache.write_index is not None
    k_pages, v_pages = cache.pools
    return replace(cache, pools=kv_write(k_pages, v_pages, k, v, cache.write_index))


def attend_source(q: jax.Array, step: Step, cache: CrossCache, *, scale: float) -> jax.Array:
    """q: [T, H, D] -> [T, H, D]: each token over the whole source of its row."""
    k_pages, v_pages = cache.pools
    return paged_attention(
        q, k_pages, v_pages, cache.page_table, step.query_start, cache.kv_len,
        scale=scale, causal=False, decode=step.decode,
    )  # fmt: skip


def attend_source_dense(
    q: jax.Array, k: jax.Array, v: jax.Array, step: DenseStep, query_start: jax.Array, *, scale: float
) -> jax.Array:
    """q: [B * L, H, D]; k, v: [S, KH, D] of B sources, which query_start [B + 1] parts. Returns [B * L, H, D].
    Differentiable."""
    tokens, _, dim = q.shape
    kv_heads = k.shape[1]
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    row = jnp.arange(tokens, dtype=jnp.int32) // (tokens // step.batch)
    place = jnp.arange(k.shape[0], dtype=jnp.int32)[None, :]
    of_row = (place >= query_start[:-1, None]) & (place < query_start[1:, None])  # [B, S]
    grouped = q.reshape(tokens, kv_heads, -1, dim)
    scores = jnp.einsum("thgd,shd->hgts", grouped, k, precision=precision, preferred_element_type=jnp.float32)
    shares = jax.nn.softmax(jnp.where(of_row[row][None, None], scores * scale, -jnp.inf), axis=-1).astype(v.dtype)
    out = jnp.einsum("hgts,shd->thgd", shares, v, precision=precision, preferred_element_type=jnp.float32)
    return out.astype(q.dtype).reshape(q.shape)
