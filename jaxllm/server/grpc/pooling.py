"""The calls that pool: Embed, Classify, Score and Pool.

The inputs of a call become requests of their own, which the engine batches with those of other calls. A call ends
with all of their numbers, or with the first fault; whatever else it has running is aborted then, or when its client
leaves.
"""

import asyncio
import functools
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import numpy as np

from jaxllm.core import Delta, FinishReason, Pooling, PoolingParams, PoolingRequest
from jaxllm.errors import QueueFullError, RequestError
from jaxllm.server.grpc.conversions import CallError
from jaxllm.server.grpc.labels import Caller
from jaxllm.server.grpc.session import Requests, run_sized
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.limits import check_inputs
from jaxllm.server.outcome import Outcome
from jaxllm.server.pooling import Input, PoolingInputs, Scoring, pooled

MAX_NUMBERS = 1 << 24
"""Of an answer with some for each token: 64 MiB, and many times that as JSON."""
IN_FLIGHT = 1024  # inputs of one call that the engine has at once: two steps of the largest kind; others get between
RETRY_SECONDS = 0.01  # where the queue is full of others' inputs

_TASKS = {
    pb.POOLING_TASK_UNSPECIFIED: None,
    pb.POOLING_TASK_EMBED: "embed",
    pb.POOLING_TASK_CLASSIFY: "classify",
    pb.POOLING_TASK_TOKEN_EMBED: "token_embed",
    pb.POOLING_TASK_TOKEN_CLASSIFY: "token_classify",
}


class Wire(Protocol):
    """What the requests of all four calls have."""

    request_id: str
    model: str

    @property
    def options(self) -> pb.PoolingOptions: ...


@dataclass(eq=False)
class _Call:
    """One call: inputs that wait here, and those that the engine has.

    Attributes:
        begun: the engine has been given some.
        fault: what ends it early.
        changed: something of this has changed.
    """

    waiting: deque[PoolingRequest] = field(default_factory=deque)
    running: set[str] = field(default_factory=set)
    begun: bool = False
    fault: CallError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, fault: CallError) -> None:
        self.fault = self.fault or fault
        self.changed.set()


class PoolingCalls:
    """Every call that pools and has not been answered, between the event loop and the engine's thread."""

    def __init__(self, requests: Requests):
        """On the event loop that serves the calls. requests: knows the engine, the tokenizer and what is refused."""
        self._requests = requests
        self._client = requests.client
        self._inputs = PoolingInputs(requests.client, lambda: requests.tokenizer)
        self._loop = asyncio.get_running_loop()
        self._calls: dict[str, _Call] = {}
        self._deltas: deque[tuple[_Call, Delta]] = deque()
        self._woken = False

    def __len__(self) -> int:
        return len(self._calls)

    async def embed(self, wire: pb.EmbedRequest, caller: Caller) -> pb.EmbedResponse:
        """Raises CallError, RequestError, as do the three below."""
        params = _params(wire, task="embed", dimensions=wire.dimensions if wire.HasField("dimensions") else None)
        outcome, requests = await self._compute(wire, wire.inputs, params, caller)
        return pb.EmbedResponse(
            request_id=outcome.request_id,
            embeddings=await _vectors(requests),
            prompt_tokens=_counts(requests),
            timings=_timings(outcome),
        )

    async def classify(self, wire: pb.ClassifyRequest, caller: Caller) -> pb.ClassifyResponse:
        outcome, requests = await self._compute(wire, wire.inputs, _params(wire, task="classify"), caller)
        pooling = self._client.info.pooling
        return pb.ClassifyResponse(
            request_id=outcome.request_id,
            probs=await _vectors(requests),
            prompt_tokens=_counts(requests),
            labels=pooling.labels if pooling else (),
            timings=_timings(outcome),
        )

    async def score(self, wire: pb.ScoreRequest, caller: Caller) -> pb.ScoreResponse:
        params = _params(wire)
        check_inputs(self._requests.config, queries=len(wire.queries), documents=len(wire.documents))
        queries, documents = _contents("queries", wire.queries), _contents("documents", wire.documents)

        def read(deadline: float | None) -> Scoring:
            priority = wire.options.priority
            return self._inputs.scoring(queries, documents, params, priority=priority, deadline=deadline)

        size = len(documents) * _size(queries) // max(1, len(queries)) + _size(documents)
        outcome, scoring = await self._run(wire, read, lambda scoring: scoring.requests, size, caller)
        return pb.ScoreResponse(
            request_id=outcome.request_id,
            scores=scoring.scores().tolist(),
            prompt_tokens=scoring.lengths,
            total_tokens=sum(_counts(scoring.requests)),
            timings=_timings(outcome),
        )

    async def pool(self, wire: pb.PoolRequest, caller: Caller) -> pb.PoolResponse:
        if wire.task not in _TASKS:
            raise RequestError(f"task={wire.task}: no such task; leave it out for the model's own", "task")
        params = _params(
            wire, task=_TASKS[wire.task], dimensions=wire.dimensions if wire.HasField("dimensions") else None
        )
        outcome, requests = await self._compute(wire, wire.inputs, params, caller)
        values = pooled(requests)

        def numbers() -> list[pb.PoolResponse.Numbers]:
            return [pb.PoolResponse.Numbers(values=own.ravel().tolist(), columns=own.shape[-1]) for own in values]

        return pb.PoolResponse(
            request_id=outcome.request_id,
            data=await run_sized(sum(own.size for own in values), numbers),
            prompt_tokens=_counts(requests),
            per_token=any(request.per_token for request in requests),
            timings=_timings(outcome),
        )

    def abort(self, request_id: str) -> bool:
        """End a call with the status ABORTED; False when there is none of that id."""
        call = self._calls.get(request_id)
        if call is not None:
            call.fail(_ended(FinishReason.ABORT))
        return call is not None

    def abort_all(self) -> int:
        return sum(self.abort(request_id) for request_id in list(self._calls))

    async def _compute(
        self, wire: Wire, inputs: Sequence[pb.PoolingInput], params: PoolingParams, caller: Caller
    ) -> tuple[Outcome, list[PoolingRequest]]:
        check_inputs(self._requests.config, inputs=len(inputs))
        contents = _contents("inputs", inputs)

        def read(deadline: float | None) -> list[PoolingRequest]:
            requests = self._inputs.requests(contents, params, priority=wire.options.priority, deadline=deadline)
            self._check_size(requests)
            return requests

        return await self._run(wire, read, lambda requests: requests, _size(contents), caller)

    def _check_size(self, requests: Sequence[PoolingRequest]) -> None:
        """RequestError for more numbers than one answer may hold."""
        pooling = self._client.info.pooling
        tokens = sum(len(request.prompt) for request in requests if request.per_token)
        if pooling is not None and tokens * pooling.size > MAX_NUMBERS:
            raise RequestError(
                f"the inputs have {tokens} tokens of {pooling.size} numbers each: an answer holds {MAX_NUMBERS} at "
                "most; send several requests",
                "inputs",
            )

    async def _run[T](
        self,
        wire: Wire,
        read: Callable[[float | None], T],
        requests_of: Callable[[T], list[PoolingRequest]],
        size: int,
        caller: Caller,
    ) -> tuple[Outcome, T]:
        """How the call went, and what `read` makes of it, computed. size: characters and tokens that it reads."""
        self._requests.check_serving()
        self._requests.check_model(wire.model)
        name = wire.request_id or f"pool-{uuid.uuid4().hex}"
        if name in self._calls:
            raise CallError(
                grpc.StatusCode.ALREADY_EXISTS,
                f"request_id={name!r}: a call of that id is still running; choose another, or leave it empty",
                "request_id",
            )
        call = self._calls[name] = _Call()
        outcome = Outcome(
            name, caller.client_request_id, caller.traceparent, caller.tracestate, arrival=time.monotonic()
        )
        requests: list[PoolingRequest] = []
        try:
            deadline = _deadline(wire.options, caller.seconds)
            what = await run_sized(size, lambda: read(deadline))
            requests = requests_of(what)
            call.waiting.extend(requests)
            while call.fault is None and (call.waiting or call.running):
                self._feed(call)
                await self._wait(call)
            if call.fault is not None:
                raise call.fault
            outcome.finish.append(str(FinishReason.STOP))
            return outcome, what
        except Exception as error:
            fault = CallError.of(error)
            outcome.error = f"{fault.code.name}, {fault.message}"
            raise
        finally:
            del self._calls[name]
            for request_id in call.running:
                self._client.abort(request_id)
            call.running.clear()
            outcome.num_prompt = sum(_counts(requests))
            begun = [request.first_scheduled for request in requests if request.first_scheduled is not None]
            outcome.first_scheduled = min(begun, default=None)
            self._requests.tell(outcome)

    def _feed(self, call: _Call) -> None:
        """Give the engine more of a call's inputs. Raises QueueFullError where it takes not even the first."""
        while call.waiting and len(call.running) < IN_FLIGHT:
            request = call.waiting[0]
            try:
                self._client.submit(request, functools.partial(self._put, call))
            except QueueFullError:
                if not call.begun:
                    raise
                return
            call.begun = True
            call.running.add(call.waiting.popleft().request_id)

    @staticmethod
    async def _wait(call: _Call) -> None:
        """Until something has come of a call; not long where it waits for others alone."""
        try:
            async with asyncio.timeout(None if call.running else RETRY_SECONDS):
                await call.changed.wait()
        except TimeoutError:
            return
        call.changed.clear()

    def _put(self, call: _Call, delta: Delta) -> None:
        """On the engine's thread: leave a delta for the event loop, waking it unless that is under way already."""
        self._deltas.append((call, delta))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: a delta that arrives from here on wakes the loop again
        while self._deltas:
            call, delta = self._deltas.popleft()
            call.running.discard(delta.request_id)
            if delta.finish is not FinishReason.STOP:
                call.fail(_ended(delta.finish, delta.error, alive=self._client.alive))
            call.changed.set()


def pooling_info(pooling: Pooling) -> pb.PoolingInfo:
    return pb.PoolingInfo(
        size=pooling.size,
        per_token=pooling.per_token,
        per_input=pooling.sequence is not None,
        scores=pooling.scores,
        labels=pooling.labels,
        dimensions=pooling.dimensions,
    )


def _ended(reason: FinishReason | None, error: str | None = None, *, alive: bool = True) -> CallError:
    """The status of a call of which an input ended without numbers. alive: whether the engine is."""
    match reason:
        case FinishReason.DEADLINE:
            return CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before every input was computed")
        case FinishReason.ABORT:
            return CallError(grpc.StatusCode.ABORTED, "the call was aborted on the server")
    code = grpc.StatusCode.INTERNAL if alive else grpc.StatusCode.UNAVAILABLE
    return CallError(code, error or "the engine failed")


def _params(wire: Wire, **values: object) -> PoolingParams:
    options = wire.options
    for name in ("use_activation", "truncate_prompt_tokens"):
        if options.HasField(name):
            values[name] = getattr(options, name)
    return PoolingParams(**values)  # type: ignore[arg-type]


def _deadline(options: pb.PoolingOptions, seconds: float | None) -> float | None:
    """On the clock of time.monotonic(): the call's own, or that of its options if it is earlier."""
    limits = [] if seconds is None else [seconds]
    if options.HasField("timeout_seconds"):
        if not (math.isfinite(options.timeout_seconds) and options.timeout_seconds > 0):
            raise RequestError(
                f"timeout_seconds={options.timeout_seconds}: must be a positive number", "timeout_seconds"
            )
        limits.append(options.timeout_seconds)
    return time.monotonic() + min(limits) if limits else None


def _contents(field: str, inputs: Sequence[pb.PoolingInput]) -> list[Input]:
    if not inputs:
        raise RequestError(f"{field} has 0 entries: give at least one", field)
    return [_content(field, number, one) for number, one in enumerate(inputs)]


def _content(field: str, number: int, one: pb.PoolingInput) -> Input:
    match one.WhichOneof("content"):
        case "text":
            return one.text
        case "token_ids":
            return list(one.token_ids.ids)
    raise RequestError(f"{field}[{number}] is empty: set text or token_ids", field)


def _timings(outcome: Outcome) -> pb.Timings:
    """Of a call that has ended: from its first step to its last it computes prompts, and nothing is drawn."""
    return pb.Timings(
        queue_seconds=outcome.queue_seconds,
        prefill_seconds=outcome.seconds - outcome.queue_seconds,
        total_seconds=outcome.seconds,
    )


def _size(contents: Sequence[Input]) -> int:
    return sum(map(len, contents))


def _counts(requests: Sequence[PoolingRequest]) -> list[int]:
    return [len(request.prompt) for request in requests]


async def _vectors(requests: Sequence[PoolingRequest]) -> list[pb.Vector]:
    values: list[np.ndarray] = pooled(requests)
    size = sum(own.size for own in values)
    return await run_sized(size, lambda: [pb.Vector(values=own.tolist()) for own in values])
