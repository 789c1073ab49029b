"""sampling_threshold in plain XLA, without sorting the vocabulary.

Floats are mapped to integers of the same order, and the lowest kept value is found bit by bit: 32 counting passes
over a row, whatever the vocabulary's size.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.sampling_threshold import GREEDY_BELOW

_SIGN = 1 << 31


def sampling_threshold(
    logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array
) -> jax.Array:
    """See pallas_kernels.sampling_threshold."""
    order = _order(logits)
    top = jnp.max(logits, axis=-1, keepdims=True)
    is_greedy = temperature < GREEDY_BELOW
    temperature = jnp.where(is_greedy, jnp.float32(1), temperature)[:, None]
    kept = (logits >= top + temperature * jnp.log(min_p)[:, None]) & (logits > -jnp.inf)

    counted = (top_k > 0) & (top_k < logits.shape[-1])
    count = jnp.minimum(jnp.where(counted, top_k, logits.shape[-1]), jnp.sum(kept, axis=-1, dtype=jnp.int32))
    lowest = _threshold(order, kept.astype(jnp.int32), count)
    kept &= order >= lowest[:, None]

    mass = jnp.where(kept, jnp.exp((logits - top) / temperature), jnp.float32(0))
    # A share that float32 cannot hold is that of the highest logit.
    share = jnp.maximum(top_p * jnp.sum(mass, axis=-1), jnp.finfo(jnp.float32).tiny)
    nucleus = _threshold(order, mass, share)
    # At top_p = 1 rounding could lose tokens too unlikely to move the sum.
    lowest = jnp.where(top_p < 1, jnp.maximum(lowest, nucleus), lowest)
    filtered = (counted | (top_p < 1) | (min_p > 0)) & ~is_greedy
    return jnp.where(filtered, _float(lowest), -jnp.inf)


def _order(x: jax.Array) -> jax.Array:
    """uint32 keys in the order of the floats x; both zeros have the same key."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, jnp.float32(0), x), jnp.uint32)
    sign = jnp.uint32(_SIGN)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _float(order: jax.Array) -> jax.Array:
    """The float of each key."""
    sign = jnp.uint32(_SIGN)
    return jax.lax.bitcast_convert_type(jnp.where(order >= sign, order ^ sign, ~order), jnp.float32)


def _threshold(order: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
    """The largest key t with sum(weight where order >= t) >= target, [B]; 0 if there is none.

    order: [B, V] uint32. weight: [B, V], not negative. target: [B] of weight's type.
    """

    def settle(i: jax.Array, t: jax.Array) -> jax.Array:
        candidate = t | (jnp.uint32(_SIGN) >> i.astype(jnp.uint32))
        reached = jnp.sum(jnp.where(order >= candidate[:, None], weight, jnp.zeros((), weight.dtype)), axis=-1)
        return jnp.where(reached >= target, candidate, t)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(32), settle, jnp.zeros(order.shape[0], jnp.uint32))
