"""Device mathematics of one draw: [B, V] float32 logits and per-row parameters in, tokens out.

Pure functions over arrays; every row is independent of the others, so a request's tokens do not depend on
what else is in the batch. The order of operations is vLLM's: penalties, stop ids masked until min_tokens,
temperature, min-p, top-k, top-p, draw. Log probabilities are those of the raw logits, before all of it.
"""

from jaxllm.sampling.draws import draw
from jaxllm.sampling.filters import keep
from jaxllm.sampling.logprobs import TokenLogprobs, token_logprobs
from jaxllm.sampling.params import RowParams
from jaxllm.sampling.penalties import forbid, penalise
from jaxllm.sampling.sample import greedy, sample

__all__ = [
    "RowParams", "TokenLogprobs", "draw", "forbid", "greedy", "keep", "penalise", "sample", "token_logprobs",
]  # fmt: skip
