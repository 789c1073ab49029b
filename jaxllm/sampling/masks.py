"""Tokens that may not be drawn: outside the allowed ones, completing a bad word, or ending too early."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import Request
from jaxllm.sampling.processors import Arrays, LogitsProcessor
from jaxllm.sampling_params import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_STOP_TOKENS

_CONTEXT = MAX_BAD_WORD_TOKENS - 1


class AllowedTokens(LogitsProcessor):
    """Only `allowed_token_ids`, without the bad words of one token. Parameter: a bit per token, 32 to a number."""

    name = "allowed_token_ids"

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {"bits": np.full(-(-vocab_size // 32), -1, np.int32)}

    def read(self, request: Request) -> Arrays | None:
        allowed = request.params.allowed_token_ids
        bad = [word[0] for word in request.params.bad_words_ids if len(word) == 1]
        if allowed is None and not bad:
            return None
        mask = np.full(32 * len(self.parameters["bits"]), allowed is None)
        if allowed is not None:
            mask[list(allowed)] = True
        mask[bad] = False
        return {"bits": np.packbits(mask, bitorder="little").view("<u4").astype(np.uint32).view(np.int32)}

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        return jnp.where(unpack_bits(params["bits"], logits.shape[-1]), logits, -jnp.inf)


class BadWords(LogitsProcessor):
    """Of a bad word of several tokens the last may not follow the others, as transformers' NoBadWordsLogitsProcessor.

    Parameters: `last` [W] int32, -1 where there is no word, and `before` [W, C] int32 the tokens before it, to the
    right, -1 on their left. State: `recent` [C] int32, the tokens drawn or given last, -1 where there were none.
    """

    name = "bad_words"
    reads_prompt = True

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {
            "last": np.full(MAX_BAD_WORDS, -1, np.int32), "before": np.full((MAX_BAD_WORDS, _CONTEXT), -1, np.int32)
        }  # fmt: skip
        self.state = {"recent": np.full(_CONTEXT, -1, np.int32)}

    def read(self, request: Request) -> Arrays | None:
        words = [word for word in request.params.bad_words_ids if len(word) > 1]
        if not words:
            return None
        last, before = self.parameters["last"].copy(), self.parameters["before"].copy()
        for i, word in enumerate(words):
            last[i] = word[-1]
            before[i, 1 - len(word) :] = word[:-1]
        return {"last": last, "before": before}

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        before = params["before"]
        follows = jnp.all((before < 0) | (before == state["recent"][:, None, :]), axis=-1)
        return forbid(logits, jnp.where(follows, params["last"], jnp.int32(-1)))

    def update(self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array) -> Arrays:
        return {"recent": jnp.concatenate([state["recent"][:, 1:], tokens[:, None]], axis=1)}

    def feed(
        self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array, start: jax.Array, stop: jax.Array
    ) -> Arrays:
        joined = jnp.concatenate([state["recent"][0], tokens])  # this one reads prompts, so that start is 0
        return {"recent": jax.lax.dynamic_slice(joined, (stop,), (_CONTEXT,))[None]}


class MinTokens(LogitsProcessor):
    """No end-of-text or stop token before `min_tokens` are out."""

    name = "min_tokens"

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {"least": np.int32(0), "stop_ids": np.full(MAX_STOP_TOKENS, -1, np.int32)}

    def read(self, request: Request) -> Arrays | None:
        if request.params.min_tokens <= len(request.output):
            return None
        stop_ids = self.parameters["stop_ids"].copy()
        stop_ids[: len(request.stop_ids)] = request.stop_ids
        return {"least": np.int32(request.params.min_tokens), "stop_ids": stop_ids}

    def until(self, request: Request) -> float:
        return request.params.min_tokens

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        early = num_drawn < params["least"]
        return forbid(logits, jnp.where(early[:, None], params["stop_ids"], jnp.int32(-1)))


def forbid(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Logits [B, V] with -inf at ids [B, K] int32 (negative: none)."""
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    nowhere = jnp.int32(logits.shape[-1])  # out of bounds: dropped
    return logits.at[rows, jnp.where(ids >= 0, ids, nowhere)].set(-jnp.inf, mode="drop")


def unpack_bits(bits: jax.Array, n: int) -> jax.Array:
    """[B, W] int32 of 32 bits each, the lowest first -> [B, n] bool."""
    places = jnp.arange(32, dtype=jnp.int32)
    return ((bits[:, :, None] >> places[None, None, :]) & 1 != 0).reshape(bits.shape[0], -1)[:, :n]


def confine(logits: jax.Array, masks: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Logits [B, V] with -inf outside of masks [B, ceil(V / 32)] int32 (see unpack_bits).

    Where they leave nothing of a row, because what else it may not draw contradicts its mask, the mask prevails:
    then the row is that of `otherwise` [B, V].
    """
    inside = unpack_bits(masks, logits.shape[-1])
    confined = jnp.where(inside, logits, -jnp.inf)
    nothing = ~jnp.any(confined > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(nothing & inside, otherwise, confined)
