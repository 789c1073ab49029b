"""Log probabilities of tokens, their ranks, and the most likely tokens beside them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class TokenLogprobs(NamedTuple):
    """logprob: [B] float32. rank: [B] int32, 1 is the most likely. top_ids, top: [B, n] int32 and float32."""

    logprob: jax.Array
    rank: jax.Array
    top_ids: jax.Array
    top: jax.Array


def token_logprobs(logits: jax.Array, tokens: jax.Array, n: int, normalise: bool = True) -> TokenLogprobs:
    """What `tokens` [B] int32 and the n most likely tokens of logits [B, V] float32 have as log_softmax.

    normalise: without it, the logits themselves.
    """
    norm = jax.nn.logsumexp(logits, axis=-1, keepdims=True) if normalise else jnp.float32(0)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)
    rank = jnp.sum(logits > chosen, axis=-1, dtype=jnp.int32) + jnp.int32(1)
    top, top_ids = jax.lax.top_k(logits, min(n, logits.shape[-1]))
    return TokenLogprobs((chosen - norm)[:, 0], rank, top_ids.astype(jnp.int32), top - norm)
