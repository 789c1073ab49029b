"""A bound on how long a model thinks before it answers."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import Request
from jaxllm.sampling.processors import Arrays, LogitsProcessor


class ThinkingBudget(LogitsProcessor):
    """After so many tokens drawn since the start-of-thinking token, the end-of-thinking token must come.

    The start may stand in the prompt, where chat templates put it; what the prompt holds behind it costs nothing.
    State: `thinking` bool, and the tokens `spent` int32 since its start.
    """

    name = "thinking_token_budget"
    reads_prompt = True

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {"budget": np.int32(0), "start": np.int32(-1), "end": np.int32(-1)}
        self.state = {"thinking": np.False_, "spent": np.int32(0)}

    def read(self, request: Request) -> Arrays | None:
        p = request.params
        if p.thinking_token_budget is None or p.thinking_token_ids is None:
            return None
        start, end = p.thinking_token_ids
        return {"budget": np.int32(p.thinking_token_budget), "start": np.int32(start), "end": np.int32(end)}

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        over = state["thinking"] & (state["spent"] >= params["budget"])
        is_end = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] == params["end"][:, None]
        return jnp.where(over[:, None], jnp.where(is_end, jnp.float32(0), -jnp.inf), logits)

    def update(self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array) -> Arrays:
        starts, ends = tokens == params["start"], tokens == params["end"]
        spent = jnp.where(starts, jnp.int32(0), state["spent"] + (state["thinking"] & drawn).astype(jnp.int32))
        return {"thinking": (state["thinking"] | starts) & ~ends, "spent": spent}

    def feed(
        self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array, start: jax.Array, stop: jax.Array
    ) -> Arrays:
        place = jnp.arange(len(tokens), dtype=jnp.int32)
        real = (place >= start) & (place < stop)

        def last(token: jax.Array) -> jax.Array:
            return jnp.max(jnp.where(real & (tokens == token), place, jnp.int32(-1)))

        started, ended = last(params["start"][0]), last(params["end"][0])
        spent = jnp.sum(real & drawn & (place > started), dtype=jnp.int32)
        anew = started >= 0
        thinking = jnp.where(anew | (ended >= 0), started > ended, state["thinking"][0])
        return {
            "thinking": thinking[None],
            "spent": (spent + jnp.where(anew, jnp.int32(0), state["spent"][0]))[None],
        }
