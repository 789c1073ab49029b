"""Logits to tokens: the two ways a program may end. Which one is compiled in is the runner's choice."""

import jax
import jax.numpy as jnp

from jaxllm.sampling.draws import draw
from jaxllm.sampling.filters import keep
from jaxllm.sampling.params import RowParams

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow."""


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token of each row, the lowest id among equals: [B, V] -> [B] int32."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def narrow(logits: jax.Array, params: RowParams) -> jax.Array:
    """Logits divided by the temperature, and -inf where min-p, top-k or top-p drop the token.

    Those of greedy rows stay as they are. logits: [B, V] float32, as the processors left them.
    """
    is_greedy = params.temperature < GREEDY_BELOW
    scaled = logits / jnp.where(is_greedy, jnp.float32(1), params.temperature)[:, None]
    kept = keep(scaled, params.top_k, params.top_p, params.min_p)
    return jnp.where(kept | is_greedy[:, None], scaled, -jnp.inf)


def sample(narrowed: jax.Array, params: RowParams, position: jax.Array) -> jax.Array:
    """One token per row, drawn as its parameters say; greedy where the temperature is 0.

    narrowed: [B, V] float32, from `narrow`. position: [B] int32 of the token to draw. Returns [B] int32.
    """
    drawn = draw(narrowed, params.seed, params.sample_index, position)
    return jnp.where(params.temperature < GREEDY_BELOW, greedy(narrowed), drawn)
