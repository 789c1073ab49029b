"""How a request's tokens are drawn and when it ends: one definition for the offline API, gRPC and HTTP."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jaxllm.errors import RequestError
from jaxllm.structured_outputs import StructuredOutputs

MAX_STOP_TOKENS = 16
"""Stop token ids (end-of-text ids included) that the device checks per request."""

MAX_LOGIT_BIAS = 512
"""Tokens whose logits one request may bias."""
MAX_BIAS = 100.0
"""What a logit bias may add or take away; that is as good as choosing or banning the token."""
MAX_BAD_WORDS = 128
"""Bad words of several tokens that the device watches for per request; those of one token are not counted."""
MAX_BAD_WORD_TOKENS = 8
MAX_SAMPLES = 128
"""Samples or beams of one request."""

FLOAT32_MAX = float(np.finfo(np.float32).max)
"""The device computes in float32: anything above is infinite there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens and when to stop. Names and meanings are those of vLLM and OpenAI.

    Attributes:
        max_tokens: new tokens at most, and no more than the context holds, which is the limit without a number.
        min_tokens: new tokens before an end-of-text or stop token may end the request.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p; in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely one; in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or output.
        frequency_penalty: subtracted per occurrence in the output; in [-2, 2].
        presence_penalty: subtracted once for tokens in the output; in [-2, 2].
        seed: draws depend on (seed, sample index, position) alone; without one, a fresh one is taken.
        stop: strings that end the request, found across token borders.
        stop_token_ids: token ids that end the request, beside the model's end-of-text ids.
        ignore_eos: the model's end-of-text ids do not end the request.
        include_stop_str_in_output: keep the stop string (or stop token's text) in the text.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: make text of the tokens; without it the answer is token ids alone, and stop strings cannot be found.
        logprobs: None, or how many of the most likely tokens to report beside the drawn one.
        prompt_logprobs: the same for every prompt token.
        n: how many samples to draw of one prompt, whose keys and values they share.
        best_of: draw this many samples and keep the n with the highest mean log probability per token; None is n.
        use_beam_search: search for the likeliest answers with best_of (or n) beams, as transformers does; n are kept.
        length_penalty: beams compare by the sum of log probabilities over their length to this power.
        early_stopping: beam search ends at once with best_of finished answers (True), when no beam can improve on
            them going by its length now (False), or when none can at all ("never").
        logit_bias: token id to what is added to its logit, in [-100, 100].
        bad_words: texts that the output may not hold; their last token is not drawn behind the others.
        bad_words_ids: the same as sequences of token ids.
        allowed_token_ids: the only tokens that may be drawn; without any, all may be.
        thinking_token_budget: tokens between the start and the end of thinking at most; the end is then forced.
        thinking_token_ids: the tokens that start and end thinking; None takes the tokenizer's.
        truncate_prompt_tokens: keep only so many of the prompt's last tokens; -1 keeps what the context holds beside
            max_tokens, and half of that at least.
        echo: the text begins with the prompt's.
        logits_processors: arguments for the engine's own logits processors, by their names.
        structured_outputs: what form the answer has; tokens that would leave it are not drawn.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[str, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    thinking_token_budget: int | None = None
    thinking_token_ids: tuple[int, int] | None = None
    truncate_prompt_tokens: int | None = None
    echo: bool = False
    logits_processors: Mapping[str, Any] = field(default_factory=dict)
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        for name in ("stop_token_ids", "bad_words", "allowed_token_ids", "thinking_token_ids"):
            if (value := getattr(self, name)) is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "bad_words_ids", tuple(map(tuple, self.bad_words_ids)))
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        for name in (
            "temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
            "length_penalty",
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= FLOAT32_MAX:
                raise RequestError(f"{name}={value!r}: must be a finite number", name)
        for name in (
            "max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs", "n", "best_of",
            "thinking_token_budget", "truncate_prompt_tokens",
        ):  # fmt: skip
            value = getattr(self, name)
            optional = name not in ("min_tokens", "top_k", "n")
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise RequestError(f"{name}={value!r}: must be an integer{' or None' if optional else ''}", name)
        _require(self.max_tokens is None or self.max_tokens >= 1, self, "max_tokens", "must be at least 1")
        _require(self.min_tokens >= 0, self, "min_tokens", "must not be negative")
        _require(self.min_tokens < 2**31, self, "min_tokens", "must be below 2**31; no context is that long")
        _require(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            self, "min_tokens", f"must not exceed max_tokens={self.max_tokens}",
        )  # fmt: skip
        _require(self.temperature >= 0, self, "temperature", "must not be negative; 0 is greedy")
        _require(self.top_k >= 0, self, "top_k", "must be positive, or 0 or -1 to keep every token")
        _require(self.top_k < 2**31, self, "top_k", "must be below 2**31; 0 keeps every token")
        _require(0 < self.top_p <= 1, self, "top_p", "must be in (0, 1]; for greedy decoding set temperature=0")
        _require(0 <= self.min_p <= 1, self, "min_p", "must be in [0, 1]")
        _require(self.repetition_penalty > 0, self, "repetition_penalty", "must be positive; 1 is none")
        _require(-2 <= self.frequency_penalty <= 2, self, "frequency_penalty", "must be in [-2, 2]")
        _require(-2 <= self.presence_penalty <= 2, self, "presence_penalty", "must be in [-2, 2]")
        _require(self.seed is None or 0 <= self.seed < 2**63, self, "seed", "must be in [0, 2**63)")
        _require(self.logprobs is None or self.logprobs >= 0, self, "logprobs", "must not be negative")
        _require(
            self.prompt_logprobs is None or self.prompt_logprobs >= 0,
            self, "prompt_logprobs", "must not be negative",
        )  # fmt: skip
        _require(all(isinstance(s, str) and s for s in self.stop), self, "stop", "must hold non-empty strings")
        _require(self.detokenize or not self.stop, self, "stop", "stop strings need text; leave detokenize=True")
        _require(_are_tokens(self.stop_token_ids), self, "stop_token_ids", "must hold token ids")
        _require(1 <= self.n <= MAX_SAMPLES, self, "n", f"must be in [1, {MAX_SAMPLES}]")
        _require(
            self.best_of is None or self.n <= self.best_of <= MAX_SAMPLES,
            self, "best_of", f"must be in [n, {MAX_SAMPLES}], and n is {self.n}",
        )  # fmt: skip
        _require(
            self.truncate_prompt_tokens is None or self.truncate_prompt_tokens == -1 or self.truncate_prompt_tokens > 0,
            self, "truncate_prompt_tokens", "must be positive, or -1 for what the context holds",
        )  # fmt: skip
        _require(
            self.early_stopping in (True, False, "never"), self, "early_stopping", "must be True, False or 'never'"
        )
        self._check_tokens()
        if self.use_beam_search:
            self._check_beams()

    def _check_tokens(self) -> None:
        """What names tokens: biases, words, thoughts."""
        bias = self.logit_bias
        _require(isinstance(bias, Mapping), self, "logit_bias", "must map token ids to numbers")
        try:  # JSON's keys are strings
            bias = {int(token) if isinstance(token, str) else token: value for token, value in bias.items()}
        except ValueError:
            raise RequestError("logit_bias: its keys must be token ids", "logit_bias") from None
        object.__setattr__(self, "logit_bias", bias)
        _require(_are_tokens(tuple(bias)), self, "logit_bias", "its keys must be token ids")
        _require(
            all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) <= MAX_BIAS for x in bias.values()),
            self, "logit_bias", f"its values must be numbers in [-{MAX_BIAS:g}, {MAX_BIAS:g}]",
        )  # fmt: skip
        if len(bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias: {len(bias)} tokens, and at most {MAX_LOGIT_BIAS} can have one", "logit_bias"
            )

        _require(
            not isinstance(self.bad_words, str) and all(isinstance(word, str) and word for word in self.bad_words),
            self, "bad_words", "must hold non-empty strings",
        )  # fmt: skip
        words = self.bad_words_ids
        _require(
            all(word and _are_tokens(word) for word in words),
            self, "bad_words_ids", "must hold sequences of token ids, none of them empty",
        )  # fmt: skip
        if any(len(word) > MAX_BAD_WORD_TOKENS for word in words):
            raise RequestError(
                f"bad_words: a word of {max(map(len, words))} tokens, and at most {MAX_BAD_WORD_TOKENS} can be watched "
                "for; a shorter part of it will do", "bad_words",
            )  # fmt: skip
        if sum(len(word) > 1 for word in words) > MAX_BAD_WORDS:
            raise RequestError(
                f"bad_words: {sum(len(word) > 1 for word in words)} sequences of several tokens, and at most "
                f"{MAX_BAD_WORDS} can be watched for; name fewer", "bad_words",
            )  # fmt: skip
        allowed = self.allowed_token_ids
        if allowed is not None:
            _require(_are_tokens(allowed), self, "allowed_token_ids", "must hold token ids")
            _require(
                not set(allowed) <= {word[0] for word in words if len(word) == 1},
                self, "allowed_token_ids", "must leave a token that is no bad word; None allows all",
            )  # fmt: skip

        _require(
            self.thinking_token_budget is None or 0 <= self.thinking_token_budget < 2**31,
            self, "thinking_token_budget", "must be in [0, 2**31)",
        )  # fmt: skip
        ids = self.thinking_token_ids
        _require(
            ids is None or (len(ids) == 2 and _are_tokens(ids) and ids[0] != ids[1]),
            self, "thinking_token_ids", "must be two token ids, of the start and of the end",
        )  # fmt: skip
        named = self.logits_processors
        _require(
            isinstance(named, Mapping) and all(isinstance(name, str) for name in named),
            self, "logits_processors", "must map names to arguments",
        )  # fmt: skip
        _require(
            self.structured_outputs is None or isinstance(self.structured_outputs, StructuredOutputs),
            self, "structured_outputs", "must be StructuredOutputs",
        )  # fmt: skip

    def _check_beams(self) -> None:
        """Beam search compares the model's own log probabilities: what changes or draws has no place in it."""
        for f in dataclasses.fields(self):
            if f.name in NOT_WITH_BEAMS:
                neutral = f.default if f.default is not dataclasses.MISSING else {}
                _require(getattr(self, f.name) == neutral, self, f.name, "not with use_beam_search; leave it out")
        _require(self.temperature in (0, 1), self, "temperature", "beam search draws nothing; leave it out")

    @property
    def num_samples(self) -> int:
        """Samples to draw, or beams to search with."""
        return self.n if self.best_of is None else self.best_of

    @property
    def need_tokenizer(self) -> bool:
        """Some of it is said in text: bad words, or how thinking starts and ends."""
        return bool(self.bad_words) or (self.thinking_token_budget is not None and self.thinking_token_ids is None)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


NOT_WITH_BEAMS = frozenset((
    "min_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "stop",
    "logprobs", "logit_bias", "bad_words", "bad_words_ids", "allowed_token_ids", "thinking_token_budget",
    "logits_processors", "structured_outputs",
))  # fmt: skip
"""What draws or changes what is drawn, beside the temperature: beam search takes none of it."""


def _are_tokens(ids: Any) -> bool:
    return all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids)


def _require(ok: bool, params: SamplingParams, name: str, why: str) -> None:
    if not ok:
        raise RequestError(f"{name}={getattr(params, name)!r}: {why}", name)
