"""The plain data that crosses rooms: what a request is, what a step does, what a step yields.

A `Request` carries everything about itself. The scheduler turns requests into a `StepPlan`, the runner
turns a `StepPlan` into a `StepOutput`, the engine turns a `StepOutput` into one `Delta` per request.
Nothing here imports JAX, and nothing here has behaviour beyond derived numbers and validation.

Progress is a number, not a phase: `request.todo` counts the tokens whose keys and values are not in the
cache yet. Prefill, a chunk of it, a decode step, a prefix hit and a recompute after preemption are all
statements about that number.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxllm.config import CacheGroup
from jaxllm.errors import RequestError

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
        max_tokens: new tokens at most; None means as many as the context holds.
        min_tokens: new tokens before an end-of-text or stop token may end the request.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p; in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely one; in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or output.
        frequency_penalty: subtracted per occurrence in the output; in [-2, 2].
        presence_penalty: subtracted once for tokens in the output; in [-2, 2].
        seed: draws depend on (seed, sample index, position) alone; None takes a fresh one.
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
        allowed_token_ids: the only tokens that may be drawn; None allows all.
        thinking_token_budget: tokens between the start and the end of thinking at most; the end is then forced.
        thinking_token_ids: the tokens that start and end thinking; None takes the tokenizer's.
        truncate_prompt_tokens: keep only so many of the prompt's last tokens; -1 keeps what the context holds.
        echo: the text begins with the prompt's.
        logits_processors: arguments for the engine's own logits processors, by their names.
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

    def _check_beams(self) -> None:
        """Beam search compares the model's own log probabilities: what changes or draws has no place in it."""
        for f in dataclasses.fields(self):
            if f.name in _NOT_WITH_BEAMS:
                neutral = f.default if f.default is not dataclasses.MISSING else {}
                _require(getattr(self, f.name) == neutral, self, f.name, "not with use_beam_search; leave it out")
        _require(self.temperature in (0, 1), self, "temperature", "beam search draws nothing; leave it out")

    @property
    def num_samples(self) -> int:
        """Samples to draw, or beams to search with."""
        return self.n if self.best_of is None else self.best_of

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


_NOT_WITH_BEAMS = frozenset((
    "min_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "stop",
    "logprobs", "logit_bias", "bad_words", "bad_words_ids", "allowed_token_ids", "thinking_token_budget",
    "logits_processors",
))  # fmt: skip


def _are_tokens(ids: Any) -> bool:
    return all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids)


def _require(ok: bool, params: SamplingParams, name: str, why: str) -> None:
    if not ok:
        raise RequestError(f"{name}={getattr(params, name)!r}: {why}", name)


PoolingTask = Literal["embed", "classify", "token_embed", "token_classify"]
"""What a pooling request asks for: numbers for the whole sequence, or for each of its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What to make of a sequence's hidden states. Names and meanings are those of vLLM.

    Attributes:
        task: embed and classify yield one vector for the sequence, token_embed and token_classify one per token.
            None is what the model was made for.
        dimensions: of an embedding, that many of its first numbers (Kusupati et al. 2022, Matryoshka).
        use_activation: normalise embeddings, make probabilities of scores; None is as the checkpoint says.
        truncate_prompt_tokens: keep that many of the first tokens, special ones where text is given; -1 as many as
            the model takes; None refuses what is longer.
    """

    task: PoolingTask | None = None
    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        tasks = PoolingTask.__args__  # type: ignore[attr-defined]
        if self.task is not None and self.task not in tasks:
            raise RequestError(f"task={self.task!r}: must be one of {', '.join(tasks)}", "task")
        for name, also in (("dimensions", ()), ("truncate_prompt_tokens", (-1,))):
            value = getattr(self, name)
            if value is None or value in also:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name}={value!r}: must be a positive integer{', -1' * bool(also)} or None", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """What a model that generates nothing makes of its hidden states.

    Attributes:
        task: what the model was made for.
        sequence: whose hidden state stands for the sequence: the first token's (cls), the last one's, the mean of
            all; None where nothing stands for it, and each token has numbers of its own alone.
        per_token: the same can be asked for token by token.
        size: numbers of one vector.
        activation: of use_activation: unit length (normalize), probabilities over all (softmax) or of each (sigmoid).
        labels: the names of a classification's classes, as far as the checkpoint gives any.
        dimensions: the sizes that embeddings were trained to be cut to; any where there are none.
    """

    task: PoolingTask
    size: int
    sequence: Literal["cls", "mean", "last"] | None
    per_token: bool
    activation: Literal["normalize", "softmax", "sigmoid", "none"]
    labels: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an end-of-text id, a stop token id or a stop string
    LENGTH = "length"  # max_tokens or the context's end
    ABORT = "abort"  # the client went away or asked for it
    DEADLINE = "deadline"  # the request's deadline passed
    ERROR = "error"  # the request failed alone; Delta.error says why


@dataclass(slots=True, eq=False)
class Family:
    """Requests that share the keys and values of what they have in common, whatever the prefix cache does for others.

    Samples of one prompt are one, and so are the beams of a search. They are served as if they had come together.
    """

    name: str
    arrival: int = -1  # of its first member, among all


@dataclass(slots=True, eq=False)
class Request:
    """One sequence to continue. The caller sets the first block; the scheduler owns the second.

    Attributes:
        prompt: token ids, at least one.
        stop_ids: every token id that ends this request (end-of-text ids unless ignored, and stop_token_ids).
        max_total: prompt and output tokens at most (from max_tokens and the context's length).
        seed: what draws are keyed by; always a number (a fresh one where the client gave none).
        sample_index: which of the prompt's samples this is; keyed into draws.
        priority: lower runs earlier under the priority policy.
        deadline: time.monotonic() at which the request ends unfinished, or None.
        cache_salt: requests share cached prefixes only with requests of the same salt.
        family: what it shares its prefix with in any case; None is nothing.
        leader: a request of the same prompt that computes it for this one, too, which waits until then.
        source: what an encoder-decoder's encoder reads; empty for every other model.

        output: tokens drawn and known on the host.
        num_inflight: tokens whose draw is submitted but not collected yet.
        num_computed: tokens whose keys and values are in the cache once every submitted step has run.
        num_cached: prompt tokens that the prefix cache supplied when the request was first admitted.
        tables: by cache group the block table, or [entry] of states; tables[g][i] holds positions
            [i * page, (i + 1) * page), and is 0 where that is left behind a window.
        reach: positions that have pages in every group.
        slot: the row of the device's per-request state, or -1 when not admitted.
        order: where the request stands among all; the smallest is served first and preempted last.
        page_keys: the prefix index's keys, as far as they were needed: [i] is that of the first i pages.
        num_indexed: how many pages, from the first, the prefix index has been told of.
        unshared: nothing that the request computes is told to the prefix index.
        source_read: the pages of its source hold what the encoder made of it for another request.
        snapshots_due: positions where its recurrent state is to be copied for others, the next one last.
        prompt_logprobs: what extend steps yielded so far, in order; delivered with the first token.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    max_total: int
    seed: int
    sample_index: int = 0
    priority: int = 0
    arrival: float = 0.0
    deadline: float | None = None
    cache_salt: str = ""
    family: Family | None = None
    leader: "Request | None" = None
    source: list[int] = field(default_factory=list)

    output: list[int] = field(default_factory=list)
    num_inflight: int = 0
    num_computed: int = 0
    num_cached: int = 0
    num_preemptions: int = 0
    tables: list[list[int]] = field(default_factory=list)
    reach: int = 0
    slot: int = -1
    order: tuple[int, float, int, int] = (0, 0.0, 0, 0)
    page_keys: list[bytes] = field(default_factory=list)
    num_indexed: int = 0
    unshared: bool = False
    source_read: bool = False
    snapshots_due: list[int] = field(default_factory=list)
    prompt_logprobs: list["Logprobs"] = field(default_factory=list)
    finish: FinishReason | None = None
    first_scheduled: float | None = None
    first_token: float | None = None

    @property
    def num_known(self) -> int:
        """Tokens whose ids the host knows."""
        return len(self.prompt) + len(self.output)

    @property
    def num_tokens(self) -> int:
        """Tokens that exist, those still on the device included."""
        return len(self.prompt) + len(self.output) + self.num_inflight

    @property
    def todo(self) -> int:
        """Tokens that exist and are not computed. 1 is an ordinary decode step."""
        return self.num_tokens - self.num_computed

    def token_ids(self, start: int, stop: int) -> list[int]:
        """The known ids at positions [start, stop)."""
        split = len(self.prompt)
        return self.prompt[start:stop] + self.output[max(0, start - split) : max(0, stop - split)]


@dataclass(slots=True)
class Row:
    """One request's share of a step: compute positions [start, start + count) and maybe draw.

    In an `extend` step the ids at those positions are host-known, except that the last one may still be on
    the device (drawn by a step that was not collected when this one was planned); then count is 1. In a
    `decode` step count is StepPlan.num_steps or what the request's limit leaves of it: the row draws one
    token per iteration until then or until a stop token.

    Attributes:
        tokens: the host-known ids at [start, start + count); empty if the one token is on the device. Decode
            rows feed the slot's last token in either case.
        fresh: the slot holds another request's state: send parameters, reset counts, and, before the step, have an
            encoder read the request's source unless it is read.
        draws: the step reaches the request's last token, so a next token is drawn.
        tables: the request's own, by cache group, not a copy: they may change with the next plan, so read them on
            submit. Decode rows need only new_pages.
        new_pages: of a decode row, (group, index, page) added by this plan; at most one in each group.
    """

    request: Request
    slot: int
    start: int
    count: int
    tokens: list[int]
    fresh: bool
    draws: bool
    tables: list[list[int]]
    new_pages: list[tuple[int, int, int]]


class PageCopy(NamedTuple):
    """A page, or a recurrent state's entry, to copy within a cache group."""

    group: int
    source: int
    target: int


@dataclass(slots=True)
class StepPlan:
    """What the device does next. `copies` run first, in any order: copy-on-write, and snapshots of states."""

    kind: Literal["extend", "decode"]
    rows: list[Row]
    num_steps: int = 1
    copies: list[PageCopy] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.count for row in self.rows)


@dataclass(slots=True, eq=False)
class PoolingRequest:
    """One sequence to make numbers of. The caller sets the first block; the scheduler owns the second.

    Attributes:
        prompt: token ids, at least one.
        token_types: the segment that each token belongs to; None where the model knows of none, or all are the first.
        per_token: numbers for each token are asked for.
        priority, arrival, deadline, order: as Request's.

        pooled: what came of it: [D] float32, or [T, D] per token.
    """

    request_id: str
    prompt: list[int]
    params: PoolingParams
    per_token: bool
    token_types: list[int] | None = None
    priority: int = 0
    arrival: float = 0.0
    deadline: float | None = None

    order: tuple[int, float, int] = (0, 0.0, 0)
    finish: FinishReason | None = None
    first_scheduled: float | None = None
    pooled: np.ndarray | None = None


@dataclass(slots=True)
class EncodePlan:
    """Whole sequences that the device computes next, together. The pooling models' StepPlan."""

    rows: list[PoolingRequest]
    kind: Literal["encode"] = "encode"

    @property
    def num_tokens(self) -> int:
        return sum([len(request.prompt) for request in self.rows])

    @property
    def per_token(self) -> bool:
        """Some row asks for numbers of each token."""
        return any(request.per_token for request in self.rows)


@dataclass(slots=True)
class EncodeOutput:
    """rows[i] belongs to plan.rows[i]: [D] float32, or [T, D] where numbers per token were asked for."""

    rows: list[np.ndarray]
    device_seconds: float = 0.0


@dataclass(slots=True)
class Logprobs:
    """Log probabilities at consecutive positions.

    token: [n] float32 of the drawn (or given) token. rank: [n] int32, 1 is the most likely.
    top_ids, top: [n, k] int32 and float32, the k most likely in falling order.
    """

    token: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray


@dataclass(slots=True)
class RowOutput:
    """What a row yields: the drawn tokens (at most num_steps; fewer when the device saw its end)."""

    tokens: list[int]
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None  # for positions start + 1 .. start + count


@dataclass(slots=True)
class StepOutput:
    """rows[i] belongs to plan.rows[i]. `device_seconds` is submit-to-ready wall time, for metrics."""

    rows: list[RowOutput]
    device_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Delta:
    """What the engine tells a request's owner after a step: new tokens, and the end when it comes.

    Counts and times are cumulative and set on every delta; times are time.monotonic() values. Of a request with
    several samples each has deltas of its own, with its index; `more` says that others have not ended.
    """

    request_id: str
    token_ids: list[int]
    logprobs: Logprobs | None = None
    prompt_logprobs: Logprobs | None = None
    finish: FinishReason | None = None
    stop_token: int | None = None  # the token id that ended it, if one did (it is the last of token_ids)
    error: str | None = None
    num_prompt: int = 0
    num_output: int = 0
    num_cached: int = 0
    arrival: float = 0.0
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    pooled: np.ndarray | None = None  # what a PoolingRequest asked for; comes with its one delta
    index: int = 0
    more: bool = False


@dataclass(slots=True)
class Load:
    """A snapshot of how busy the engine is. Counters are totals since start."""

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0  # free or evictable
    prefix_queries: int = 0  # tokens looked up for requests first admitted
    prefix_hits: int = 0  # tokens found of those
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps_extend: int = 0
    steps_decode: int = 0
    steps_encode: int = 0

    @property
    def cache_usage(self) -> float:
        return 1.0 - self.pages_free / self.pages_total if self.pages_total else 0.0


@dataclass(frozen=True, slots=True)
class PagedKV:
    """What an attention layer caches: keys and values in pages of [page, num_kv_heads, head_dim] each.

    `window` is the number of positions a token sees, itself included; None is all of them. With a window, pages
    wholly behind it return to the pool.
    """

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    def pools(self) -> tuple[tuple[int, ...], ...]:
        """Of each pool, what one token has in it: keys, then values."""
        return ((self.num_kv_heads, self.head_dim),) * 2


@dataclass(frozen=True, slots=True)
class LatentKV:
    """What multi-head latent attention caches: a token's latent, then its rotated key, in pages of one pool."""

    rank: int
    rope_dim: int

    def pools(self) -> tuple[tuple[int, ...], ...]:
        """Of the pool, what one token has in it."""
        return ((self.rank + self.rope_dim,),)


@dataclass(frozen=True, slots=True)
class RecurrentState:
    """What a recurrent layer carries from token to token: of each array the shape of one sequence's state, and the
    name of its dtype, or None for the model's own."""

    arrays: tuple[tuple[tuple[int, ...], str | None], ...]


@dataclass(frozen=True, slots=True)
class CrossKV:
    """What cross-attention reads: an encoder's keys and values, written once per request, in pages as PagedKV's."""

    num_kv_heads: int
    head_dim: int

    def pools(self) -> tuple[tuple[int, ...], ...]:
        """Of each pool, what one token of the source has in it: keys, then values."""
        return ((self.num_kv_heads, self.head_dim),) * 2


CacheSpec = PagedKV | LatentKV | RecurrentState | CrossKV
"""The kinds of cache a layer may declare. A pool of pages is [pages, page, *what a token has], one of states
[entries, *shape]."""

LayerSpecs = CacheSpec | tuple[CacheSpec, ...]
"""What a layer declares: one specification, a tuple where it keeps several things, or () where it keeps nothing."""


def all_specs(layers: tuple[LayerSpecs, ...]) -> tuple[CacheSpec, ...]:
    """The specifications of all layers, one after the other."""
    return tuple(spec for layer in layers for spec in (layer if isinstance(layer, tuple) else (layer,)))


def pages_of(spec: CacheSpec, page_size: int) -> tuple[tuple[tuple[int, ...], str | None], ...]:
    """Of each pool of a specification, one page or entry: its shape, and its dtype's name or None for the model's."""
    if isinstance(spec, RecurrentState):
        return spec.arrays
    return tuple(((page_size, *shape), None) for shape in spec.pools())


def group_of(spec: CacheSpec) -> CacheGroup:
    """The group whose block table serves a specification's pools."""
    match spec:
        case RecurrentState():
            return CacheGroup("state")
        case CrossKV():
            return CacheGroup("source")
        case _:
            return CacheGroup("tokens", window=spec.window if isinstance(spec, PagedKV) else None)


def groups_of(layers: tuple[LayerSpecs, ...]) -> tuple[CacheGroup, ...]:
    """All groups of a model, in the order that SchedulerConfig asks for."""
    kinds = ("tokens", "source", "state")
    groups = {group_of(spec) for spec in all_specs(layers)}
    return tuple(sorted(groups, key=lambda group: (kinds.index(group.kind), group.window or 0)))


def elements_per_token(layers: tuple[LayerSpecs, ...]) -> int:
    """What one token takes in all layers' pools of pages, in array elements. A source's tokens take as much in those
    of cross-attention."""
    paged = (spec for spec in all_specs(layers) if not isinstance(spec, RecurrentState))
    return sum(math.prod(shape) for spec in paged for shape in spec.pools())


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rooms above the runner may know of the loaded model. `path` also holds the tokenizer's files."""

    name: str
    architecture: str
    dtype: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    max_logprobs: int
    path: str
    generation_defaults: dict[str, float | int]  # temperature, top_k, ... as the checkpoint's makers set them
    pooling: Pooling | None = None  # what it makes of sequences, if it generates nothing
    token_types: int = 0  # segments that it tells apart
    decoder_start: tuple[int, ...] | None = None  # what decoder prompts begin with, if it has encoder and decoder
