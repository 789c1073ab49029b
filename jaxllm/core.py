"""The plain data that crosses rooms: what a request is, what a step does, what a step yields.

A `Request` carries everything about itself. The scheduler turns requests into a `StepPlan`, the runner
turns a `StepPlan` into a `StepOutput`, the engine turns a `StepOutput` into one `Delta` per request.
Nothing here imports JAX, and nothing here has behaviour beyond derived numbers and validation.

Progress is a number, not a phase: `request.todo` counts the tokens whose keys and values are not in the
cache yet. Prefill, a chunk of it, a decode step, a prefix hit and a recompute after preemption are all
statements about that number.
"""

import enum
import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np

from jaxllm.config import CacheGroup
from jaxllm.errors import RequestError
from jaxllm.sampling_params import SamplingParams

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
        lower_case: texts are read in lower case.
    """

    task: PoolingTask
    size: int
    sequence: Literal["cls", "mean", "last"] | None
    per_token: bool
    activation: Literal["normalize", "softmax", "sigmoid", "none"]
    labels: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()
    lower_case: bool = False

    @property
    def scores(self) -> bool:
        """Pairs can be scored: read together, for one number, or each for an embedding."""
        return self.task == "embed" or (self.task == "classify" and self.size == 1)


class FinishReason(enum.StrEnum):
    STOP = "stop"  # an end-of-text id, a stop token id or a stop string
    LENGTH = "length"  # max_tokens or the context's end
    ABORT = "abort"  # the client went away or asked for it
    DEADLINE = "deadline"  # the request's deadline passed
    ERROR = "error"  # the request failed alone; Delta.error says why


class Constraint(Protocol):
    """One running sequence's place in the grammar that its answer has to fit. It lives on the host.

    Every method raises ConstraintError where going on would cost too much, or a token came that the grammar does not
    allow: the request then ends with that error, and the constraint is of no more use.
    """

    def fill(self, mask: np.ndarray) -> None:
        """Write which tokens may be drawn now: [ceil(V / 32)] int32, a bit per token, the lowest first.

        Ids that end the request may be drawn where the grammar may end, and nowhere else, unless it has them as text.
        """

    def accept(self, token: int) -> bool:
        """Go on by a drawn token. False once nothing may follow: the request then ends with FinishReason.STOP."""

    def forced(self) -> list[int]:
        """The tokens that have to follow now, none where there is a choice. The place stays the same."""

    def fork(self) -> Self:
        """The same place, for another sample of the request."""


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
        constraint: where the output stands in the grammar that it has to fit; None leaves it free.

        output: tokens drawn and known on the host.
        num_inflight: tokens whose draw is submitted but not collected yet.
        num_foretold: draws in flight that will be ignored, as a grammar forces the tokens: they are in the output.
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
        jumped: the slot's state knows nothing of the newest tokens in the output, which no step has drawn.
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
    constraint: Constraint | None = None

    output: list[int] = field(default_factory=list)
    num_inflight: int = 0
    num_foretold: int = 0
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
    jumped: bool = False
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
        fresh: the slot holds another state than the request's: send parameters, reset counts, and, before the step,
            have an encoder read the request's source unless it is read.
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
    constrained: bool = field(init=False)  # some row's draw needs a mask

    def __post_init__(self) -> None:
        self.constrained = any(row.request.constraint is not None and row.draws for row in self.rows)

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
    """rows[i] belongs to plan.rows[i]."""

    rows: list[RowOutput]


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
    """What the rooms above the runner may know of the loaded model. `path` also holds the tokenizer's files.

    Clients may ask for it by its name or one of the aliases.
    """

    name: str
    architecture: str
    dtype: str
    num_parameters: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    max_logprobs: int
    path: str
    generation_defaults: dict[str, Any]  # temperature, top_k, ... as the checkpoint's makers set them, or the operator
    pooling: Pooling | None = None  # what it makes of sequences, if it generates nothing
    token_types: int = 0  # segments that it tells apart
    decoder_start: tuple[int, ...] | None = None  # what decoder prompts begin with, if it has encoder and decoder
    aliases: tuple[str, ...] = ()

    def check_generates(self) -> None:
        """RequestError of a model that generates nothing."""
        if (pooling := self.pooling) is not None:
            raise RequestError(
                f"{self.name} ({self.architecture}) generates nothing: it is here to {pooling.task}; ask for that, or "
                "start the engine with task='generate' if the checkpoint has a head for it",
                "model",
            )
