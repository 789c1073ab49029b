"""Which whole sequences a pooling model computes next, and what its vectors become: no cache, no slots, no pages."""

import itertools
import math
import time
from bisect import bisect_left, insort
from dataclasses import replace
from operator import attrgetter

import numpy as np

from jaxllm.config import SchedulerConfig
from jaxllm.core import Delta, EncodeOutput, EncodePlan, FinishReason, Load, Pooling, PoolingParams, PoolingRequest
from jaxllm.errors import QueueFullError, RequestError

_by_order = attrgetter("order")


class EncodeScheduler:
    """Batches waiting sequences by their tokens, in order: none overtakes one that waits before it.

    A request waits, then runs in the one step that computes it, then has ended. Steps may be submitted before the
    one before them is committed, as with the scheduler of generation, whose methods these are.
    """

    def __init__(self, config: SchedulerConfig, pooling: Pooling):
        self.config = config
        self.waiting: list[PoolingRequest] = []
        self._pooling = pooling
        self._requests: dict[str, PoolingRequest] = {}
        self._arrivals = itertools.count()
        self._next_deadline = math.inf  # no request's deadline is earlier
        self._load = Load()

    @property
    def has_work(self) -> bool:
        """Some request has not ended."""
        return bool(self._requests)

    @property
    def num_queued(self) -> int:
        """Places of the queue that are taken."""
        return len(self.waiting)

    def load(self) -> Load:
        waiting = len(self.waiting)
        running = max(0, len(self._requests) - waiting)  # another thread may ask in the midst of an end
        return replace(self._load, running=running, waiting=waiting)

    def add(self, request: PoolingRequest) -> None:
        """Queues a request. Raises QueueFullError, or RequestError if it is too long or its id is in use."""
        if request.request_id in self._requests:
            raise RequestError(
                f"request_id={request.request_id!r}: a request of this id is running; choose another", "request_id"
            )
        if not 0 < len(request.prompt) <= self.config.max_num_batched_tokens:
            raise RequestError(
                f"prompt has {len(request.prompt)} tokens: it needs one at least, and a step computes "
                f"{self.config.max_num_batched_tokens} at most",
                "prompt",
            )
        if self.num_queued >= self.config.max_queued:
            raise QueueFullError(
                f"{self.config.max_queued} requests wait already: try again later, or raise --max-queued"
            )
        urgency = (request.priority, request.arrival) if self.config.policy == "priority" else (0, 0.0)
        request.order = (*urgency, next(self._arrivals))
        if request.deadline is not None:
            self._next_deadline = min(self._next_deadline, request.deadline)
        insort(self.waiting, request, key=_by_order)
        self._requests[request.request_id] = request

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> PoolingRequest | None:
        """Ends a request at once; None if there is none of this id."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, reason)
        return request

    def expire(self, now: float) -> list[PoolingRequest]:
        """Ends the requests whose deadline has passed."""
        if now < self._next_deadline:
            return []
        timed = [request for request in self._requests.values() if request.deadline is not None]
        expired = [request for request in timed if request.deadline is not None and request.deadline <= now]
        for request in expired:
            self._end(request, FinishReason.DEADLINE)
        left = (request.deadline for request in timed if request.finish is None and request.deadline is not None)
        self._next_deadline = min(left, default=math.inf)
        return expired

    def flush_prefix_cache(self) -> int:
        """There is none."""
        return 0

    def plan(self, now: float) -> EncodePlan | None:
        """The next step, which the caller submits; None when nobody waits."""
        budget, count = self.config.max_num_batched_tokens, 0
        for request in self.waiting[: self.config.max_num_seqs]:
            budget -= len(request.prompt)
            if budget < 0:
                break
            request.first_scheduled = now
            count += 1
        if count == 0:
            return None
        rows = self.waiting[:count]
        del self.waiting[:count]
        self._load.steps_encode += 1
        return EncodePlan(rows)

    def commit(self, plan: EncodePlan, output: EncodeOutput) -> list[Delta]:
        """Ends the requests of a step with what it yielded. Those that ended meanwhile are ignored."""
        now = time.monotonic()
        deltas = []
        for request, values in zip(plan.rows, output.rows, strict=True):
            if request.finish is not None:
                continue
            request.pooled = finish(values, request.params, self._pooling)
            self._load.prompt_tokens += len(request.prompt)
            self._end(request, FinishReason.STOP)
            deltas.append(self.delta(request, now))
        return deltas

    def delta(self, request: PoolingRequest, now: float) -> Delta:
        """What the owner of a request that has ended is told."""
        return Delta(
            request.request_id,
            [],
            finish=request.finish,
            num_prompt=len(request.prompt),
            arrival=request.arrival,
            first_scheduled=request.first_scheduled,
            finished=now,
            pooled=request.pooled,
        )

    def _end(self, request: PoolingRequest, reason: FinishReason) -> None:
        request.finish = reason
        del self._requests[request.request_id]
        place = bisect_left(self.waiting, request.order, key=_by_order)
        if place < len(self.waiting) and self.waiting[place] is request:
            del self.waiting[place]


def finish(values: np.ndarray, params: PoolingParams, pooling: Pooling) -> np.ndarray:
    """values [..., D] float32 as the request wants them: cut to its dimensions, then activated."""
    if params.dimensions is not None:
        values = values[..., : params.dimensions]
    match _activation(params, pooling):
        case "normalize":
            return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), np.float32(1e-12))
        case "softmax":
            grown = np.exp(values - values.max(axis=-1, keepdims=True))
            return grown / grown.sum(axis=-1, keepdims=True)
        case "sigmoid":  # by way of tanh, which no score is too large for
            return np.float32(0.5) * (np.tanh(values * np.float32(0.5)) + np.float32(1))
        case _:
            return values


def _activation(params: PoolingParams, pooling: Pooling) -> str:
    if params.use_activation is None or (params.use_activation and pooling.activation != "none"):
        return pooling.activation
    if not params.use_activation:
        return "none"
    if pooling.task == "embed":
        return "normalize"
    return "sigmoid" if pooling.size == 1 else "softmax"
