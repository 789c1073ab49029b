"""Logits to tokens: the two ways a program may end, greedy or drawn. Which one is compiled in is the runner's choice.

What may be drawn: min-p keeps p >= min_p * max(p), top-k what is not below the k-th largest of those, top-p the
smallest set of the most likely of those whose share of their mass reaches top_p. Tokens of equal logits stand or fall
together, so that the kept set is a property of the logits and not of an ordering: where a sort would cut through a tie,
all its tokens are kept.
"""

import jax
import jax.numpy as jnp

from jaxllm.sampling.params import RowParams
from pallas_kernels.sampling_draw import sampling_draw
from pallas_kernels.sampling_threshold import GREEDY_BELOW, sampling_threshold


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token of each row, the lowest id among equals: [B, V] -> [B] int32."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def draw(logits: jax.Array, params: RowParams, position: jax.Array) -> jax.Array:
    """One token per row, drawn as its parameters say; greedy where the temperature is 0.

    A draw depends on the row's (seed, sample index, position) and on nothing else. logits: [B, V] float32, as the
    processors left them. position: [B] int32 of the token to draw. Returns [B] int32.
    """
    lowest = _lowest(logits, params)
    return sampling_draw(logits, lowest, params.temperature, params.seed, params.sample_index, position)


def narrow(logits: jax.Array, params: RowParams) -> jax.Array:
    """Logits divided by the temperature, and -inf where min-p, top-k or top-p drop the token.

    Those of greedy rows stay as they are. logits: [B, V] float32, as the processors left them.
    """
    temperature = jnp.where(params.temperature < GREEDY_BELOW, jnp.float32(1), params.temperature)
    return jnp.where(logits >= _lowest(logits, params)[:, None], logits / temperature[:, None], -jnp.inf)


def _lowest(logits: jax.Array, params: RowParams) -> jax.Array:
    """[B], the lowest logit of each row that may be drawn."""
    return sampling_threshold(logits, params.temperature, params.top_k, params.top_p, params.min_p)
