"""sampling_draw in plain XLA."""

import jax
import jax.numpy as jnp

from pallas_kernels.sampling_draw import LANES, num_parts
from pallas_kernels.sampling_threshold import GREEDY_BELOW


def sampling_draw(
    logits: jax.Array,
    lowest: jax.Array,
    temperature: jax.Array,
    seed: jax.Array,
    sample_index: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """See pallas_kernels.sampling_draw."""
    rows, vocabulary = logits.shape
    is_greedy = temperature < GREEDY_BELOW
    key = jax.vmap(_key)(seed, sample_index, position)
    kept = jnp.where(logits >= lowest[:, None], logits, -jnp.inf)
    scaled = kept / jnp.where(is_greedy, jnp.float32(1), temperature)[:, None]
    parts = num_parts(vocabulary)
    groups = min(vocabulary, parts * LANES)
    members = -(-vocabulary // groups)
    padded = jnp.pad(scaled, ((0, 0), (0, members * groups - vocabulary)), constant_values=-jnp.inf)
    padded = padded.reshape(rows, members, groups)
    mass = jax.nn.logsumexp(padded, axis=1)
    group = jnp.argmax(mass - jax.vmap(lambda key: _log_exponential(key, groups))(key), axis=-1).astype(jnp.uint32)
    key = jax.vmap(jax.random.fold_in)(key, group | jnp.uint32(1 << 31))
    group = group.astype(jnp.int32)
    own = jnp.take_along_axis(padded, group[:, None, None], axis=2)[:, :, 0]
    member = jnp.argmax(own - jax.vmap(lambda key: _log_exponential(key, members))(key), axis=-1).astype(jnp.int32)
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(is_greedy, best, member * jnp.int32(groups) + group)


def _key(seed: jax.Array, sample_index: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, sample_index), position)


def _log_exponential(key: jax.Array, n: int) -> jax.Array:
    """The logarithms of n numbers that are exponentially distributed."""
    bits = jax.random.bits(key, (n,), jnp.uint32)
    # Small u decide the race; a uint32 turned into a float keeps 24 bits of them at every magnitude.
    u = (bits.astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(2.0**-32)
    return jnp.log(-jnp.log1p(-jnp.minimum(u, jnp.float32(1 - 2.0**-24))))
