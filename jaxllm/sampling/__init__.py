"""Device mathematics of one draw: [B, V] float32 logits and per-row parameters in, tokens out.

Pure functions over arrays; every row is independent of the others, so a request's tokens do not depend on
what else is in the batch. The order: the logits processors (allowed tokens, bad words, stop ids masked until
min_tokens, logit bias, penalties, the user's own, the thinking budget), masks from the host, temperature, min-p,
top-k, top-p, draw.
"""

from collections.abc import Sequence

from jaxllm.sampling.bias import LogitBias
from jaxllm.sampling.logprobs import TokenLogprobs, token_logprobs
from jaxllm.sampling.masks import AllowedTokens, BadWords, MinTokens, confine, forbid
from jaxllm.sampling.params import RowParams
from jaxllm.sampling.penalties import Penalties
from jaxllm.sampling.processors import LogitsProcessor, Processors, ProcessorState, Rows, load
from jaxllm.sampling.sample import draw, greedy, narrow
from jaxllm.sampling.thinking import ThinkingBudget

__all__ = [
    "LogitsProcessor", "ProcessorState", "Processors", "RowParams", "Rows", "TokenLogprobs", "confine", "draw",
    "forbid", "greedy", "make_processors", "narrow", "token_logprobs",
]  # fmt: skip


def make_processors(vocab_size: int, users: Sequence[str | type] = ()) -> Processors:
    """Ours with the user's own among them, which see what ours made of the logits. Raises ConfigError."""
    ours = (AllowedTokens, BadWords, MinTokens, LogitBias, Penalties)
    return Processors([
        *(processor(vocab_size) for processor in ours),
        *(load(what, vocab_size) for what in users),
        ThinkingBudget(vocab_size),
    ])  # fmt: skip
