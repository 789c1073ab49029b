"""The seam between a model's heads and whatever computes attention."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.errors import ConfigError
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.rope import Rotation, rotate
from jaxllm.layers.step import AnyStep, DenseStep, EncodeStep, Step, narrow
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.kv_write import kv_write
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from pallas_kernels.ragged_attention import ragged_attention
from pallas_kernels.rms_norm import rms_norm


@dataclass(frozen=True)
class Placement:
    """What is still to be done to queries and keys before they meet: an RMS norm of each head, then a rotation.

    Attention does it while it writes the cache, in one kernel where there is one.

    Attributes:
        rotation: None turns nothing.
        interleaved: each number turns with its neighbour, not half with half.
        q_weight, k_weight: [D] of the norms; None leaves queries or keys as they are.
        eps: of the norms.
    """

    rotation: Rotation = None
    interleaved: bool = False
    q_weight: jax.Array | None = None
    k_weight: jax.Array | None = None
    eps: float = 1e-6

    def normed(self, q_norm: RMSNorm, k_norm: RMSNorm) -> "Placement":
        """With norms of queries and keys."""
        return replace(self, q_weight=q_norm.scale, k_weight=k_norm.scale, eps=q_norm.eps)

    def __call__(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """q [T, H, D], k [T, KH, D] as they meet."""
        if self.q_weight is not None:
            q = rms_norm(q, self.q_weight, self.eps)
        if self.k_weight is not None:
            k = rms_norm(k, self.k_weight, self.eps)
        if self.rotation is not None:
            q, k = (rotate(x, *self.rotation, interleaved=self.interleaved) for x in (q, k))
        return q, k


AS_THEY_ARE = Placement()
"""Nothing is to be done: the positions are elsewhere, or queries and keys have been placed already."""


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    step: AnyStep,
    cache: PagedCache | None,
    *,
    scale: float,
    placement: Placement = AS_THEY_ARE,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    sinks: jax.Array | None = None,
    position_bias: jax.Array | None = None,
) -> tuple[jax.Array, PagedCache | None]:
    """Causal attention of the step's tokens, over the pages with a Step and over themselves with the other kinds.

    q: [T, H, D]; k, v: [T, KH, D]; cache: the layer's keys and values with a Step, None with the others.
    placement: what is done to q and k first.
    window: positions a token sees, itself included; None is all.
    soft_cap: scaled scores become soft_cap * tanh(scores / soft_cap); None leaves them.
    alibi_slopes: [H] float32; scores then lose slope * how far the key stands behind the query.
    sinks: [H] float32, a logit more in each head's softmax, which takes its share and adds nothing.
    position_bias: [H, W + 1] float32; scores then gain the number at how far the key stands behind, W at most.
    Returns [T, H, D] in q.dtype, or [R, H, D] of a step with a tail, and the cache with this step's keys and values
    written.
    """
    if not isinstance(step, Step):
        q, k = placement(q, k)
    if isinstance(step, DenseStep):
        assert cache is None
        return attend_dense(q, k, v, step.batch, scale, window, soft_cap, alibi_slopes, sinks, position_bias), None
    if isinstance(step, EncodeStep):
        assert cache is None
        assert position_bias is None, "encoders that add one call ragged_attention themselves"
        if sinks is not None:
            raise ConfigError("attention sinks are served in generation alone: leave the task on auto")
        bias = None if alibi_slopes is None else _alibi_bias(alibi_slopes, q.shape[0])
        return ragged_attention(
            q, k, v, step.query_start,
            scale=scale, causal=True, window=window, soft_cap=soft_cap, position_bias=bias,
        ), None  # fmt: skip
    assert cache is not None
    k_pages, v_pages = cache.pools
    options: dict[str, Any] = {
        "scale": scale, "window": window, "soft_cap": soft_cap, "alibi_slopes": alibi_slopes, "sinks": sinks,
        "position_bias": position_bias,
    }  # fmt: skip
    if placement is AS_THEY_ARE:
        k_pages, v_pages = kv_write(k_pages, v_pages, k, v, cache.write_index)
    else:
        qkv = jnp.concatenate([q, k, v], axis=1)  # what a matmul made together XLA does not take apart for this
        cos, sin = placement.rotation or (None, None)
        index = cache.write_index
        placed: dict[str, Any] = {
            "q_weight": placement.q_weight, "k_weight": placement.k_weight, "eps": placement.eps,
            "interleaved": placement.interleaved,
        }  # fmt: skip
        if step.decode:
            out, k_pages, v_pages = decode_attention(
                qkv, cos, sin, k_pages, v_pages, index, cache.page_table, step.kv_len, **placed, **options
            )
            return out, replace(cache, pools=(k_pages, v_pages))
        q, k_pages, v_pages = qk_norm_rope_kv_write(qkv, cos, sin, k_pages, v_pages, index, **placed)
    q, asked = narrow(q, step)
    out = paged_attention(
        q, k_pages, v_pages, cache.page_table, asked.query_start, asked.kv_len, **options, decode=asked.decode
    )
    return out, replace(cache, pools=(k_pages, v_pages))


def slopes_of(num_heads: int, bias_max: float = 8.0) -> tuple[float, ...]:
    """ALiBi's slopes (Press et al. 2022): a geometric sequence that ends at 2^-bias_max.

    Where num_heads is no power of two, every other one of the next power's, then the first of those left out.
    """
    power = 1 << (num_heads - 1).bit_length()
    slopes = [2.0 ** (-bias_max * head / power) for head in range(1, power + 1)]
    return tuple(slopes if power == num_heads else (slopes[1::2] + slopes[::2])[:num_heads])


def _alibi_bias(slopes: jax.Array, length: int) -> jax.Array:
    """slopes [H] -> [H, 2 * length - 1] float32, what ragged_attention adds by distance."""
    distance = jnp.arange(1 - length, length, dtype=jnp.float32)
    return slopes[:, None] * jnp.minimum(distance, 0.0)[None, :]


def attend_dense(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    batch: int,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    sinks: jax.Array | None = None,
    position_bias: jax.Array | None = None,
) -> jax.Array:
    """q: [B * S, H, D]; k: [B * S, KH, D]; v: [B * S, KH, DV] -> [B * S, H, DV]. Differentiable."""
    kv_heads, dim = k.shape[1:]
    length = q.shape[0] // batch
    grouped = q.reshape(batch, length, kv_heads, -1, dim)
    k, v = (x.reshape(batch, length, kv_heads, -1) for x in (k, v))
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None

    scores = jnp.einsum("bqhgd,bkhd->bhgqk", grouped, k, precision=precision, preferred_element_type=jnp.float32)
    behind = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]  # how far the key stands behind the query
    seen = (behind >= 0) if window is None else (behind >= 0) & (behind < window)
    scores = scores * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if alibi_slopes is not None:
        slopes = alibi_slopes.reshape(1, kv_heads, -1, 1, 1)
        scores = scores - slopes * behind.astype(jnp.float32)[None, None, None]
    if position_bias is not None:
        bias = position_bias[:, jnp.clip(behind, 0, position_bias.shape[1] - 1)]
        scores = scores + bias.reshape(1, kv_heads, -1, length, length)
    scores = jnp.where(seen[None, None, None], scores, -jnp.inf)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks.reshape(1, kv_heads, -1, 1, 1), (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
    shares = jax.nn.softmax(scores, axis=-1)[..., :length].astype(v.dtype)
    out = jnp.einsum("bhgqk,bkhd->bqhgd", shares, v, precision=precision, preferred_element_type=jnp.float32)
    return out.astype(q.dtype).reshape(*q.shape[:2], v.shape[-1])
