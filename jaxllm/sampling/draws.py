"""Random draws that depend on (seed, sample index, position) and on nothing else.

The bits are threefry's (Salmon et al. 2011), keyed per row and counted per token. The token drawn is the
winner of an exponential race: the largest logit - log(E) with E exponentially distributed, which follows the
softmax of the logits without normalising or summing them.
"""

import jax
import jax.numpy as jnp


def draw(logits: jax.Array, seed: jax.Array, sample_index: jax.Array, position: jax.Array) -> jax.Array:
    """One token per row from the softmax of its logits, [B] int32.

    Args:
        logits: [B, V] float32, divided by the temperature; tokens of -inf are never drawn.
        seed: [B, 2] uint32. sample_index: [B] int32. position: [B] int32 of the token to draw.
    """
    bits = jax.vmap(_bits, in_axes=(0, 0, 0, None))(seed, sample_index, position, logits.shape[-1])
    # Small u decide the race; a uint32 turned into a float keeps 24 bits of them at every magnitude.
    u = (bits.astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(2.0**-32)
    exponential = -jnp.log1p(-jnp.minimum(u, jnp.float32(1 - 2.0**-24)))
    return jnp.argmax(logits - jnp.log(exponential), axis=-1).astype(jnp.int32)


def _bits(seed: jax.Array, sample_index: jax.Array, position: jax.Array, n: int) -> jax.Array:
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, sample_index), position)
    return jax.random.bits(key, (n,), jnp.uint32)
