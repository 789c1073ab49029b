"""Engine: the runner and the scheduler, and the loop that joins them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np

from jaxllm.config import EngineConfig, SchedulerConfig
from jaxllm.constraints import Compiler, Vocabulary
from jaxllm.core import (
    Delta,
    EncodePlan,
    FinishReason,
    Load,
    ModelInfo,
    PoolingParams,
    PoolingRequest,
    Request,
    SamplingParams,
    StepPlan,
)
from jaxllm.engine.constrained import Masks
from jaxllm.engine.encode import EncodeScheduler
from jaxllm.engine.groups import Group, group_of
from jaxllm.engine.intake import Intake
from jaxllm.engine.scheduler import Scheduler
from jaxllm.errors import EngineDeadError, RequestError
from jaxllm.progress import Report


class AnyRunner(Protocol):
    """What the loop asks of a runner: plans and outputs are those of the model's scheduler."""

    @property
    def config(self) -> EngineConfig: ...
    @property
    def info(self) -> ModelInfo: ...
    @property
    def scheduler_config(self) -> SchedulerConfig: ...
    def submit(self, plan: Any) -> Any: ...
    def collect(self, handle: Any) -> Any: ...
    def keep(self, *, wait: bool = False) -> None: ...
    def keep_next(self) -> bool: ...


class StepRunner(AnyRunner, Protocol):
    """What it asks of `jaxllm.runner.Runner`, for a model that generates."""

    def draw(self, handle: Any, masks: np.ndarray | None) -> None: ...
    def step_seconds(self, num_rows: int) -> float: ...
    def extend_seconds(self) -> Sequence[tuple[int, float]]: ...
    def check(self, request: Request) -> None: ...
    def prompt_logits(self, token_ids: list[int], source: list[int]) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step that was committed. num_tokens: drawn in a decode step, computed in the others. seconds: the device's, as
    StepTimes has it."""

    kind: Literal["extend", "decode", "encode"]
    num_rows: int
    num_tokens: int
    seconds: float


@dataclass(slots=True)
class StepTimes:
    """Of all steps since the start, in seconds.

    steps: of the model whose results are here: a program of several counts as several. submitted: the same, of what the
    device was given. host: the loop's own work. waited: for the device.
    device: from when a step could begin there to when its result was here, which is too much where the host was late.
    """

    steps: int = 0
    submitted: int = 0
    host: float = 0.0
    waited: float = 0.0
    device: float = 0.0

    def since(self, before: "StepTimes") -> "StepTimes":
        return StepTimes(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


class Engine:
    """Continues requests, many at once, or makes vectors of them, as the model does. One thread drives it by calling
    `step` while it `has_work`.

    Only `make_request`, `make_pooling_request`, `load`, `num_queued` and the attributes may be used from other threads.

    Attributes:
        info: the model.
        config: with every None resolved.
        runner: the programs and the memory plan, for views and metrics.
        last_step: what the last call of `step` committed, or None if it committed nothing.
        times: where the time of all steps went.
        death: why the engine can do no more, or None.
    """

    def __init__(self, runner: AnyRunner):
        self.runner = runner
        self.info = runner.info
        self.config = runner.config
        self.last_step: StepRecord | None = None
        self.times = StepTimes()
        self._device_free = 0.0  # when the device had done all that was submitted before, by perf_counter
        self.death: str | None = None
        self._scheduler: Any = self._make_scheduler()
        self._intake = Intake(runner.info, runner.scheduler_config, runner.config.seed)
        self._masks = Masks(runner.scheduler_config.max_num_seqs, runner.info.vocab_size)
        self._submitted: tuple[StepPlan | EncodePlan, Any, float] | None = None
        self._requests: dict[str, Request | PoolingRequest] = {}  # as the scheduler knows them
        self._groups: dict[str, Group] = {}  # by the id of what was asked for
        self._group_of: dict[str, Group] = {}  # by the id of each member
        self._ended: list[Delta] = []
        self._compiler: Compiler | None = None

    @classmethod
    def start(cls, config: EngineConfig, model_class: type | None = None, progress: Report | None = None) -> "Engine":
        """Load the model, plan the memory, compile every program.

        model_class: a module class to build in place of the architecture's own.
        """
        from jaxllm.runner import load  # brings JAX, which nothing else here needs

        return cls(load(config, model_class=model_class, progress=progress))

    def _make_scheduler(self) -> "Scheduler | EncodeScheduler":
        config, pooling = self.runner.scheduler_config, self.info.pooling
        if pooling is not None:
            return EncodeScheduler(config, pooling)
        return Scheduler(config, self._generator.step_seconds, self._generator.extend_seconds())

    @property
    def _generator(self) -> StepRunner:
        """The runner of a model that generates. Raises RequestError where this one does not."""
        self.info.check_generates()
        return cast(StepRunner, self.runner)

    def make_request(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        source: Sequence[int] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str = "",
        sample_index: int = 0,
    ) -> Request:
        """A request as `add` takes it. deadline: a time.monotonic() value. Raises RequestError.

        source: what an encoder-decoder's encoder reads, where its decoder is to go on from `prompt`; without it the
        encoder reads `prompt`, and the decoder begins as the model's makers say.
        """
        runner = self._generator
        request = self._intake.request(
            prompt,
            params,
            source=source,
            request_id=request_id,
            priority=priority,
            deadline=deadline,
            cache_salt=cache_salt,
            sample_index=sample_index,
        )
        self._check_scores(params)
        runner.check(request)
        if (form := params.structured_outputs) is not None:
            request.constraint = self._grammars.compile(form, request.stop_ids)
        return request

    def use_vocabulary(self, load: Callable[[], Vocabulary]) -> None:
        """What structured outputs are spelled in. load: called when the first request asks for such, by any thread."""
        self._compiler = Compiler(load, self.info.vocab_size, self.info.eos_token_ids)

    def warm_grammars(self) -> None:
        """Load the vocabulary now, which takes a second, so that the first structured output need not wait for it."""
        self._grammars.warm()

    @property
    def _grammars(self) -> Compiler:
        if self._compiler is None:
            raise RequestError(
                "structured_outputs: this engine was given no tokenizer, so that it cannot tell what its tokens spell",
                "structured_outputs",
            )
        return self._compiler

    def make_pooling_request(
        self,
        prompt: Sequence[int],
        params: PoolingParams,
        *,
        token_types: Sequence[int] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> PoolingRequest:
        """A request of a model that generates nothing. token_types: the segment of each token. Raises RequestError."""
        return self._intake.pooling_request(
            prompt, params, token_types=token_types, request_id=request_id, priority=priority, deadline=deadline
        )

    def add(self, request: Request | PoolingRequest) -> None:
        """Queue a request. Raises QueueFullError, RequestError (its id is in use) or EngineDeadError."""
        if self.death is not None:
            raise EngineDeadError(self.death)
        if request.request_id in self._groups or request.request_id in self._requests:
            raise RequestError(
                f"request_id={request.request_id!r}: a request of this id is running; choose another", "request_id"
            )
        group = group_of(request) if isinstance(request, Request) else None
        if group is None:
            self._scheduler.add(request)
            self._requests[request.request_id] = request
            return
        first, *others = group.start()
        self._scheduler.add(first)  # may refuse
        self._requests[first.request_id] = first
        self._groups[request.request_id] = self._group_of[first.request_id] = group
        self._follow(group, others)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT, index: int | None = None) -> bool:
        """End a request, or one sample of it; its pages are free at once and the next `step` returns its last delta.

        False when no request of this id is running.
        """
        group = self._groups.get(request_id)
        members = [self._requests.get(request_id)] if group is None else group.chosen(index)
        for member in members:
            if member is None:
                return False
            if member.request_id in self._requests:  # the end of one may have ended the others
                self._scheduler.abort(member.request_id, reason)
                self._tell_end(member, time.monotonic())
        return True

    @property
    def has_work(self) -> bool:
        """`step` has something to do: a request to advance, a step to collect, an end to tell of."""
        return bool(self._requests or self._submitted or self._ended)

    def step(self) -> list[Delta]:
        """Submit the next step, then commit the one before it, which the device has meanwhile done.

        What a constrained row of the next step may draw follows from that commit: its masks are filled while the
        device computes the logits that they are for.

        Returns one Delta for each request that got tokens or ended. Raises EngineDeadError when anything fails;
        every request has then ended, and `take_ended` returns their last deltas.
        """
        if self.death is not None:
            raise EngineDeadError(self.death)
        began, waited = time.perf_counter(), self.times.waited
        try:
            now = time.monotonic()
            for request in self._scheduler.expire(now):
                if request.request_id in self._requests:  # the end of one beam has ended the others
                    self._tell_end(request, now)
            plan = self._scheduler.plan(now)
            previous, self._submitted = self._submitted, self._submit(plan) if plan is not None else None
            if previous is not None:
                self._commit(*previous)
            else:
                self.last_step = None
                assert plan is not None or not self._requests, "requests are waiting and no step can be planned"
            if self._submitted is not None:
                self._draw(*self._submitted[:2])
        except Exception as error:
            self._die(error)
            raise EngineDeadError(self.death) from error
        self.times.host += time.perf_counter() - began - (self.times.waited - waited)
        return self.take_ended()

    def take_ended(self) -> list[Delta]:
        """The deltas that no call of `step` has returned yet."""
        deltas, self._ended = self._ended, []
        return deltas

    @property
    def num_queued(self) -> int:
        """Requests that wait for their first step, of which there are max_queued at most."""
        queued: int = self._scheduler.num_queued
        return queued

    def keep(self, *, wait: bool = False) -> None:
        """Have the programs that this start compiled written for the next one, by a thread that steps wait for now and
        then for some tenths of a second; wait: until it is done."""
        self.runner.keep(wait=wait)

    def keep_next(self) -> bool:
        """Write one of them, here; for when nothing runs. False where all are."""
        return self.runner.keep_next()

    def load(self) -> Load:
        load: Load = self._scheduler.load()
        return load

    def flush_prefix_cache(self) -> int:
        """Forget every cached prefix; returns the pages that it frees. Running requests go on."""
        freed: int = self._scheduler.flush_prefix_cache()
        return freed

    def prompt_logits(self, token_ids: Sequence[int], source: Sequence[int] | None = None) -> np.ndarray:
        """[T, V] float32: the logits behind each token of one sequence, of an encoder-decoder's decoder. For research;
        compiles on first use. source: as make_request's."""
        return self._generator.prompt_logits(*self._intake.prompts(token_ids, source, new_tokens=0))

    def _check_scores(self, params: SamplingParams) -> None:
        """Sequences compare by log probabilities; RequestError where the engine tells of something else."""
        compared = "use_beam_search" if params.use_beam_search else "best_of" if params.num_samples > params.n else None
        if compared is not None and self.config.logprobs_mode.endswith("logits"):
            raise RequestError(
                f"{compared}: this engine reports {self.config.logprobs_mode}, and log probabilities are what "
                "sequences are compared by; start it with another --logprobs-mode",
                compared,
            )

    def _submit(self, plan: StepPlan | EncodePlan) -> tuple[StepPlan | EncodePlan, Any, float]:
        handle = self.runner.submit(plan)
        self.times.submitted += _steps(plan)
        return plan, handle, time.perf_counter()

    def _commit(self, plan: StepPlan | EncodePlan, handle: Any, submitted: float) -> None:
        began = time.perf_counter()
        output = self.runner.collect(handle)
        here = time.perf_counter()
        self.times.steps += _steps(plan)
        self.times.waited += here - began
        seconds = here - max(submitted, self._device_free)
        self.times.device += seconds
        self._device_free = here
        if plan.kind == "extend":
            self._scheduler.learn(plan, seconds)
        for delta in self._scheduler.commit(plan, output):
            if delta.finish is not None:
                del self._requests[delta.request_id]
            self._tell(delta)
        drawn = plan.kind == "decode"
        num_tokens = sum([len(row.tokens) for row in output.rows]) if drawn else plan.num_tokens
        self.last_step = StepRecord(plan.kind, len(plan.rows), num_tokens, seconds)

    def _draw(self, plan: StepPlan | EncodePlan, handle: Any) -> None:
        """Submits the draws of a step that waits for masks; requests that have none to give end here."""
        if isinstance(plan, EncodePlan) or not plan.constrained:
            return
        masks, failed = self._masks.fill(plan.rows)
        self._generator.draw(handle, masks)
        for request, error in failed:
            if request.request_id in self._requests:  # the end of one sample may have ended the others
                self._scheduler.abort(request.request_id, FinishReason.ERROR)
                self._tell_end(request, time.monotonic(), error)

    def _tell_end(self, request: Request | PoolingRequest, now: float, error: str | None = None) -> None:
        delta: Delta = self._scheduler.delta(request, now)
        delta.error = error
        del self._requests[request.request_id]
        self._tell(delta)

    def _tell(self, delta: Delta) -> None:
        """To a request's owner; a member's delta first becomes what it means for the request."""
        group = self._group_of.get(delta.request_id)
        if group is None:
            self._ended.append(delta)
            return
        if delta.finish is not None:
            del self._group_of[delta.request_id]
        deltas, new = group.take(delta)
        self._ended += deltas
        self._follow(group, new)
        if any(delta.finish is not None and not delta.more for delta in deltas):
            del self._groups[group.request.request_id]
            while group.members:  # of a search that was ended from outside
                name, _ = group.members.popitem()
                self._group_of.pop(name, None)
                if self._requests.pop(name, None) is not None:
                    self._scheduler.abort(name)

    def _follow(self, group: Group, members: list[Request]) -> None:
        for member in members:
            self._scheduler.add(member, entering=False)
            self._requests[member.request_id] = member
            self._group_of[member.request_id] = group

    def _die(self, error: Exception) -> None:
        """Nobody knows what state the device is in: every request ends here, and none can follow."""
        self.death = f"the engine died of {type(error).__name__}: {error}; the log has the details, restart it to go on"
        self._submitted = None
        now = time.monotonic()
        for request in list(self._requests.values()):
            if request.request_id in self._requests:
                request.finish = FinishReason.ERROR
                self._tell_end(request, now, self.death)


def _steps(plan: StepPlan | EncodePlan) -> int:
    return plan.num_steps if isinstance(plan, StepPlan) else 1
