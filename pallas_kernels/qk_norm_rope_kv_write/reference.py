"""qk_norm_rope_kv_write as its parts."""

import jax
import jax.numpy as jnp

from pallas_kernels.kv_write.reference import kv_write
from pallas_kernels.rms_norm.reference import rms_norm
from pallas_kernels.rope.reference import rope


def qk_norm_rope_kv_write(
    qkv: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    *,
    q_weight: jax.Array | None,
    k_weight: jax.Array | None,
    eps: float,
    interleaved: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See pallas_kernels.qk_norm_rope_kv_write."""
    heads, kv_heads = qkv.shape[1], k_pages.shape[2]
    q, k, v = jnp.split(qkv, [heads - 2 * kv_heads, heads - kv_heads], axis=1)
    if q_weight is not None:
        q = rms_norm(q, q_weight, eps)
    if k_weight is not None:
        k = rms_norm(k, k_weight, eps)
    if cos is not None and sin is not None:
        q, k = (_rotate(x, cos, sin, interleaved) for x in (q, k))
    return q, *kv_write(k_pages, v_pages, k, v, index)


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, interleaved: bool) -> jax.Array:
    turned, passed = jnp.split(x, [2 * cos.shape[1]], axis=-1)
    if interleaved:
        turned = jnp.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)
    turned = rope(turned, cos, sin)
    if interleaved:
        turned = jnp.stack(jnp.split(turned, 2, axis=-1), axis=-1).reshape(turned.shape)
    return jnp.concatenate([turned, passed], axis=-1)
