"""Changes to the logits before the temperature: penalties for repetition, and tokens that may not come yet."""

import jax
import jax.numpy as jnp

from jaxllm.sampling.params import RowParams


def penalise(logits: jax.Array, counts: jax.Array, in_prompt: jax.Array, params: RowParams) -> jax.Array:
    """Repetition penalty as transformers defines it, frequency and presence penalties as OpenAI does.

    A token of prompt or output has its logit divided by the repetition penalty where positive and multiplied
    where negative; then each occurrence in the output costs the frequency penalty, and the first the presence
    penalty.

    Args:
        logits: [B, V] float32.
        counts: [B, V] integers, occurrences in the output.
        in_prompt: [B, V] bool, whether the prompt holds the token.
    """
    in_output = counts > 0
    repetition = params.repetition_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(in_output | in_prompt, repeated, logits)
    logits -= params.frequency_penalty[:, None] * counts.astype(jnp.float32)
    return logits - jnp.where(in_output, params.presence_penalty[:, None], jnp.float32(0))


def forbid(logits: jax.Array, ids: jax.Array, active: jax.Array) -> jax.Array:
    """Logits with -inf at ids [B, K] int32 (negative: none) in the rows where active [B] is set."""
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    nowhere = jnp.int32(logits.shape[-1])  # out of bounds: dropped
    ids = jnp.where(active[:, None] & (ids >= 0), ids, nowhere)
    return logits.at[rows, ids].set(-jnp.inf, mode="drop")
