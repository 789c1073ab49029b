"""Which tokens may be drawn: min-p, then top-k, then top-p, without sorting the vocabulary.

Floats are mapped to integers of the same order, and the lowest kept value is found bit by bit: 32 counting
passes over a row, whatever the vocabulary's size. Tokens of equal logits stand or fall together, so that the
kept set is a property of the logits and not of an ordering: where a sort would cut through a tie, all its
tokens are kept.
"""

import jax
import jax.numpy as jnp


def keep(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """The tokens that may be drawn, [B, V] bool.

    min-p keeps p >= min_p * max(p). top-k keeps what is not below the k-th largest of those. top-p keeps the
    smallest set of the most likely of those whose share of their mass reaches top_p.

    Args:
        logits: [B, V] float32, divided by the temperature; -inf is never kept.
        top_k: [B] int32; 0 keeps all.
        top_p: [B] float32 in (0, 1]; 1 keeps all.
        min_p: [B] float32 in [0, 1]; 0 keeps all.
    """
    order = _order(logits)
    top = jnp.max(logits, axis=-1, keepdims=True)
    kept = (logits >= top + jnp.log(min_p)[:, None]) & (logits > -jnp.inf)

    count = jnp.where(top_k > 0, top_k, logits.shape[-1])
    count = jnp.minimum(count, jnp.sum(kept, axis=-1, dtype=jnp.int32))
    kept &= order >= _threshold(order, kept.astype(jnp.int32), count)[:, None]

    mass = jnp.where(kept, jnp.exp(logits - top), jnp.float32(0))
    nucleus = order >= _threshold(order, mass, top_p * jnp.sum(mass, axis=-1))[:, None]
    # At top_p = 1 rounding could lose tokens too unlikely to move the sum.
    return kept & (nucleus | (top_p >= 1)[:, None])


def _order(x: jax.Array) -> jax.Array:
    """uint32 keys in the order of the floats x; both zeros have the same key."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, jnp.float32(0), x), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _threshold(order: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
    """The largest key t with sum(weight where order >= t) >= target, [B]; 0 if there is none.

    order: [B, V] uint32. weight: [B, V], not negative. target: [B] of weight's type.
    """

    def settle(i: jax.Array, t: jax.Array) -> jax.Array:
        candidate = t | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        reached = jnp.sum(jnp.where(order >= candidate[:, None], weight, jnp.zeros((), weight.dtype)), axis=-1)
        return jnp.where(reached >= target, candidate, t)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(32), settle, jnp.zeros(order.shape[0], jnp.uint32))
