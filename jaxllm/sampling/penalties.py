"""Penalties for repetition, as transformers (repetition) and OpenAI (frequency, presence) define them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import Request
from jaxllm.sampling.processors import Arrays, LogitsProcessor

_IN_PROMPT = np.int16(-(2**15))
_MOST = np.int16(2**15 - 1)


class Penalties(LogitsProcessor):
    """A token of prompt or output has its logit divided by the repetition penalty where positive and multiplied
    where negative; then each occurrence in the output costs the frequency penalty, and the first the presence
    penalty.

    State: `seen` [V] int16, occurrences in the output (saturating), with the sign bit where the prompt has the token.
    """

    name = "penalties"
    reads_prompt = True

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {"repetition": np.float32(1), "frequency": np.float32(0), "presence": np.float32(0)}
        self.state = {"seen": np.zeros(vocab_size, np.int16)}

    def read(self, request: Request) -> Arrays | None:
        p = request.params
        if (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) == (1, 0, 0):
            return None
        return {
            "repetition": np.float32(p.repetition_penalty),
            "frequency": np.float32(p.frequency_penalty),
            "presence": np.float32(p.presence_penalty),
        }

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        seen = state["seen"]
        counts = (seen & _MOST).astype(jnp.float32)
        repetition, frequency, presence = (params[name][:, None] for name in ("repetition", "frequency", "presence"))
        repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
        logits = jnp.where(seen != 0, repeated, logits)
        return logits - frequency * counts - jnp.where(counts > 0, presence, jnp.float32(0))

    def update(self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array) -> Arrays:
        """Of drawn tokens; those of prompts come through `feed`."""
        seen = state["seen"]
        rows = jnp.arange(len(tokens), dtype=jnp.int32)
        now = seen[rows, tokens]
        more = now + ((now & _MOST) < _MOST).astype(jnp.int16)
        if len(tokens) == 1:  # a scatter of one element would copy the whole array inside a loop
            return {"seen": jax.lax.dynamic_update_slice(seen, more[:, None], (jnp.int32(0), tokens[0]))}
        return {"seen": seen.at[rows, tokens].set(more)}

    def feed(
        self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array, start: jax.Array, stop: jax.Array
    ) -> Arrays:
        place = jnp.arange(len(tokens), dtype=jnp.int32)
        real = (place >= start) & (place < stop)
        nowhere = jnp.int32(self.vocab_size)
        seen = state["seen"][0]
        marked = jnp.zeros_like(seen).at[jnp.where(real & ~drawn, tokens, nowhere)].set(_IN_PROMPT, mode="drop")
        times = (seen & _MOST).astype(jnp.int32)
        times = times.at[jnp.where(real & drawn, tokens, nowhere)].add(jnp.int32(1), mode="drop")
        times = jnp.minimum(times, jnp.int32(_MOST)).astype(jnp.int16)
        return {"seen": ((seen & _IN_PROMPT) | marked | times)[None]}
