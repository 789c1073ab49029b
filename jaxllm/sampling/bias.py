"""logit_bias: numbers added to the logits of some tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import Request
from jaxllm.sampling.processors import Arrays, LogitsProcessor
from jaxllm.sampling_params import MAX_LOGIT_BIAS


class LogitBias(LogitsProcessor):
    """Parameters: `ids` [K] int32, -1 where there is none, and what each has added, `values` [K] float32."""

    name = "logit_bias"

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {
            "ids": np.full(MAX_LOGIT_BIAS, -1, np.int32), "values": np.zeros(MAX_LOGIT_BIAS, np.float32)
        }  # fmt: skip

    def read(self, request: Request) -> Arrays | None:
        bias = request.params.logit_bias
        if not bias:
            return None
        ids, values = self.parameters["ids"].copy(), self.parameters["values"].copy()
        ids[: len(bias)] = list(bias)
        values[: len(bias)] = list(bias.values())
        return {"ids": ids, "values": values}

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
        ids = jnp.where(params["ids"] >= 0, params["ids"], jnp.int32(logits.shape[-1]))  # out of bounds: dropped
        return logits.at[rows, ids].add(params["values"], mode="drop")
