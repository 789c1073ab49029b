"""The scheduler against a device made of Python: whatever the schedule, every answer is the solo answer.

The simulated device keeps, for each place of each page, a hash of the whole prefix (and salt) that was computed
into it, executes plans in order, draws each token from the prefix it reads back, ends rows on its own at their
limit or stop token, and hands its outputs back one step late. After every step it is compared with what the
scheduler believes: block tables, prefix index, counts of holders.
"""

import os
import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from jaxllm.config import SchedulerConfig
from jaxllm.core import FinishReason, Logprobs, Request, Row, RowOutput, SamplingParams, StepOutput, StepPlan
from jaxllm.engine.scheduler import Scheduler, delta_of

VOCABULARY = 7
STEMS = ([1, 2, 3, 4, 5, 6, 1, 2, 3, 4], [1, 2, 3, 6, 6, 6, 6, 6, 6, 6], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
EXAMPLES = int(os.environ.get("JAXLLM_SCHEDULES", "2000"))


def chain(prefix: int, token: int) -> int:
    """What a token's place in the cache holds: it stands for the token and all before it.

    Hashes of tuples of integers are the same in every run.
    """
    return hash((prefix, token))


def draw(prefix: int, seed: int) -> int:
    return (hash((prefix, seed)) >> 7) % VOCABULARY


class Truth:
    """What a request must see and answer, computed alone and at once."""

    def __init__(self, request: Request):
        self.tokens = list(request.prompt)
        self.prefixes = []  # prefixes[p] is what the place of position p must hold
        prefix = root(request)
        while True:
            for token in self.tokens[len(self.prefixes) :]:
                prefix = chain(prefix, token)
                self.prefixes.append(prefix)
            if len(self.tokens) == request.max_total:
                break
            self.tokens.append(draw(prefix, request.seed))
        # The device may run on behind a stop token that only the host knows; the answer ends there.
        answer = self.tokens[len(request.prompt) :]
        ends = (i for i, token in enumerate(answer, 1) if token in request.stop_ids and i >= request.params.min_tokens)
        end = next(ends, None)
        self.answer = answer[:end]
        self.finish = FinishReason.LENGTH if end is None else FinishReason.STOP


def root(request: Request) -> int:
    # sum, not hash: the hash of a string differs from run to run
    return sum(request.cache_salt.encode())


@dataclass
class Slot:
    request: Request
    position: int  # of the token to compute next
    table: list[int] = field(default_factory=list)
    last: int | None = None
    done: bool = False


class Device:
    """Executes plans. It knows of a request what a runner would send, and of the stop ids only the first."""

    def __init__(self, config: SchedulerConfig):
        self.page_size = config.page_size
        self.pages: list[list[object]] = [[None] * config.page_size for _ in range(config.num_pages)]
        self.slots: list[Slot | None] = [None] * config.max_num_seqs
        self.seen: Counter[str] = Counter()

    def execute(self, plan: StepPlan) -> StepOutput:
        assert plan.rows
        assert len({row.slot for row in plan.rows}) == len(plan.rows)
        self._copy(plan.copies)
        self.seen["copies"] += len(plan.copies)
        self.seen[f"{plan.kind} of {plan.num_steps}"] += 1
        run = self._extend if plan.kind == "extend" else self._decode
        return StepOutput([run(row, plan.num_steps) for row in plan.rows])

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        targets = [target for _, target in copies]
        assert len({*targets}) == len(targets)
        assert not {*targets} & {source for source, _ in copies}, "copies may run in any order"
        for source, target in copies:
            self.pages[target] = list(self.pages[source])

    def _extend(self, row: Row, num_steps: int) -> RowOutput:
        assert num_steps == 1
        request = row.request
        if row.fresh:
            self.slots[row.slot] = Slot(request, row.start)
        slot = self.slots[row.slot]
        assert slot is not None
        assert slot.request is request
        assert all(row.pages[index] == page for index, page in row.new_pages)
        slot.table = list(row.pages)
        if slot.done:  # the host does not know yet; whatever such a row writes must harm nobody
            self.seen["zombie rows"] += 1
            for position in range(row.start, row.start + row.count):
                self._write(slot, position, "garbage")
            return RowOutput([])
        assert row.start == slot.position
        assert len(row.tokens) == row.count or (not row.tokens and row.count == 1)
        for token in row.tokens or [slot.last]:
            assert token is not None
            self._compute(slot, token)
        drawn = [self._draw(slot)] if row.draws else []
        prompt_logprobs = None
        if request.params.prompt_logprobs is not None:
            prompt_logprobs = logprobs(range(row.start + 1, row.start + row.count + 1))
        return RowOutput(drawn, logprobs(drawn), prompt_logprobs)

    def _decode(self, row: Row, num_steps: int) -> RowOutput:
        slot = self.slots[row.slot]
        assert slot is not None
        assert slot.request is row.request
        assert not row.fresh
        assert row.count <= num_steps
        assert len(row.new_pages) <= 1
        for index, page in row.new_pages:
            assert index == len(slot.table)
            slot.table.append(page)
        self.seen["zombie rows"] += slot.done
        assert slot.done or slot.position == row.start
        drawn = []
        for step in range(num_steps):
            if slot.done:
                self.pages[0][slot.position % self.page_size] = "garbage"
                continue
            assert step < row.count, "the host reserved less than the row's limit allows"
            assert slot.last is not None
            self._compute(slot, slot.last)
            drawn.append(self._draw(slot))
        return RowOutput(drawn, logprobs(drawn))

    def _compute(self, slot: Slot, token: int) -> None:
        """Reads the prefix back, then writes the token's keys and values."""
        before = self._read(slot, slot.position - 1) if slot.position else root(slot.request)
        self._write(slot, slot.position, chain(before, token))
        slot.position += 1

    def _draw(self, slot: Slot) -> int:
        request = slot.request
        token = draw(self._read(slot, slot.position - 1), request.seed)
        slot.last = token
        total = slot.position + 1
        stops = token in request.stop_ids[:1] and total - len(request.prompt) >= request.params.min_tokens
        slot.done = stops or total == request.max_total
        return token

    def _read(self, slot: Slot, position: int) -> int:
        value = self.pages[slot.table[position // self.page_size]][position % self.page_size]
        assert isinstance(value, int)
        return value

    def _write(self, slot: Slot, position: int, value: object) -> None:
        page = slot.table[position // self.page_size]
        assert page != 0
        self.pages[page][position % self.page_size] = value


def logprobs(values) -> Logprobs:
    """Recognisable ones: the log probability of 7 is 7."""
    token = np.array(list(values), np.float32)
    n = len(token)
    return Logprobs(token, np.ones(n, np.int32), np.zeros((n, 2), np.int32), np.zeros((n, 2), np.float32))


@dataclass(frozen=True)
class Spec:
    """A request and what happens to it."""

    arrives: int
    prompt: tuple[int, ...]
    max_tokens: int
    min_tokens: int
    stop_ids: tuple[int, ...]
    seed: int
    salt: str
    priority: int
    prompt_logprobs: bool
    aborted: int | None  # tick
    deadline: int | None  # tick

    def request(self, number: int) -> Request:
        return Request(
            request_id=f"request-{number}",
            prompt=list(self.prompt),
            params=SamplingParams(
                max_tokens=self.max_tokens,
                min_tokens=min(self.min_tokens, self.max_tokens),
                prompt_logprobs=2 if self.prompt_logprobs else None,
            ),
            stop_ids=self.stop_ids,
            max_total=len(self.prompt) + self.max_tokens,
            seed=self.seed,
            priority=self.priority,
            arrival=float(self.arrives),
            deadline=self.deadline,
            cache_salt=self.salt,
        )


@dataclass(frozen=True)
class Schedule:
    specs: tuple[Spec, ...]
    config: SchedulerConfig
    overlapped: bool  # plan a step before the one before it is committed
    flushed: int | None  # tick


def prompt(stem: list[int], length: int, own: list[int]) -> tuple[int, ...]:
    return (*stem[:length], *own) or (1,)


SELDOM = st.sampled_from([None] * 40 + list(range(30)))
SPECS = st.builds(
    Spec,
    arrives=st.integers(0, 12),
    prompt=st.builds(
        prompt, st.sampled_from(STEMS), st.integers(0, 10), st.lists(st.integers(0, VOCABULARY - 1), max_size=6)
    ),
    max_tokens=st.integers(1, 14),
    min_tokens=st.sampled_from([0, 0, 3, 8]),
    stop_ids=st.sampled_from([(), (0,), (0, 1), (2, 3)]),
    seed=st.integers(0, 1),
    salt=st.sampled_from(["", "", "", "salt"]),
    priority=st.integers(0, 2),
    prompt_logprobs=st.sampled_from([False, False, False, True]),
    aborted=SELDOM,
    deadline=SELDOM,
)


def schedule(
    chosen: list[Spec],
    geometry: tuple[int, tuple[int, ...]],
    spare_pages: int,
    max_num_seqs: int,
    spare_budget: int,
    cached: bool,
    policy: str,
    overlapped: bool,
    flushed: int | None,
) -> Schedule:
    page_size, decode_steps = geometry
    largest = max(-(-(len(spec.prompt) + spec.max_tokens - 1) // page_size) for spec in chosen)
    config = SchedulerConfig(
        num_pages=1 + largest + spare_pages,
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + spare_budget,
        max_model_len=64,
        decode_steps=decode_steps,
        enable_prefix_caching=cached,
        policy=policy,
    )
    return Schedule(tuple(chosen), config, overlapped, flushed)


SCHEDULES = st.builds(
    schedule,
    st.lists(SPECS, min_size=1, max_size=9),
    st.sampled_from([(1, (1,)), (2, (1,)), (2, (1, 2)), (4, (1,)), (4, (1, 2)), (4, (1, 2, 4))]),
    spare_pages=st.integers(0, 14),
    max_num_seqs=st.integers(1, 5),
    spare_budget=st.integers(0, 12),
    cached=st.sampled_from([True, True, True, False]),
    policy=st.sampled_from(["fcfs", "priority"]),
    overlapped=st.sampled_from([True, True, False]),
    flushed=SELDOM,
)


class Simulation:
    """Plays a schedule to its end, checking as it goes."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.scheduler = Scheduler(schedule.config)
        self.device = Device(schedule.config)
        self.requests = [spec.request(number) for number, spec in enumerate(schedule.specs)]
        self.truths = {request: Truth(request) for request in self.requests}
        self.tokens: dict[str, list[int]] = {request.request_id: [] for request in self.requests}
        self.finishes: dict[str, list[FinishReason]] = {request.request_id: [] for request in self.requests}
        self.pending: tuple[StepPlan, StepOutput] | None = None

    def run(self) -> Counter[str]:
        tick = 0
        arrivals = sorted(range(len(self.requests)), key=lambda number: self.schedule.specs[number].arrives)
        while arrivals or self.scheduler.has_work or self.pending:
            assert tick < 1500, "no progress"
            while arrivals and self.schedule.specs[arrivals[0]].arrives <= tick:
                self.scheduler.add(self.requests[arrivals.pop(0)])
            if tick == self.schedule.flushed:
                self._flush()
            self._abort(tick, even=True)
            for request in self.scheduler.expire(tick):
                self._told(delta_of(request, tick))
            submitted = self._plan(tick)
            self._check_books()
            self._abort(tick, even=False)  # while the step before, or this one, is in flight
            if self.schedule.overlapped:
                self._commit()
                self.pending = submitted
            else:
                self.pending = submitted
                self._commit()
            self._check_books()
            tick += 1
        self._check_end()
        self.device.seen["preemptions"] = self.scheduler.load().preemptions
        self.device.seen["hits"] = self.scheduler.load().prefix_hits
        return self.device.seen

    def _plan(self, tick: int) -> tuple[StepPlan, StepOutput] | None:
        decoding = {request: request.num_preemptions for request in self.scheduler.decoding.values()}
        plan = self.scheduler.plan(tick)
        rows = plan.rows if plan else []
        planned = {row.request for row in rows}
        for request, preemptions in decoding.items():
            assert request in planned or request.num_preemptions > preemptions, "a stream was starved"
        if plan is None:
            assert self.pending or not self.scheduler.has_work, "work, nothing in flight, and no plan"
            return None
        if plan.kind == "extend":
            assert plan.num_tokens <= self.schedule.config.max_num_batched_tokens
        assert all(row.request.finish is None for row in rows)
        return plan, self.device.execute(plan)

    def _commit(self) -> None:
        if self.pending is None:
            return
        for delta in self.scheduler.commit(*self.pending):
            assert delta.token_ids
            assert delta.logprobs is not None
            assert delta.logprobs.token.tolist() == delta.token_ids
            self._told(delta)
        self.pending = None

    def _told(self, delta) -> None:
        request = self.requests[int(delta.request_id.removeprefix("request-"))]
        tokens = self.tokens[delta.request_id]
        if delta.prompt_logprobs is not None or (not tokens and delta.token_ids and request.params.prompt_logprobs):
            assert not tokens
            assert delta.prompt_logprobs is not None
            assert delta.prompt_logprobs.token.tolist() == list(range(1, len(request.prompt)))
        tokens += delta.token_ids
        assert delta.num_output == len(tokens)
        assert (delta.stop_token is not None) == (delta.finish is FinishReason.STOP)
        if delta.finish is not None:
            self.finishes[delta.request_id].append(delta.finish)

    def _abort(self, tick: int, even: bool) -> None:
        for number, spec in enumerate(self.schedule.specs):
            if spec.aborted == tick and (number % 2 == 0) == even:
                request = self.scheduler.abort(self.requests[number].request_id)
                if request is not None:
                    self._told(delta_of(request, tick))

    def _flush(self) -> None:
        free, idle = self.scheduler.pool.free, self.scheduler.pool.idle
        assert self.scheduler.flush_prefix_cache() == idle
        assert (self.scheduler.pool.free, self.scheduler.pool.idle, len(self.scheduler.index)) == (free, 0, 0)

    def _check_books(self) -> None:
        """What the scheduler believes is so on the device, and no page is lost or held by nobody."""
        scheduler, page_size = self.scheduler, self.schedule.config.page_size
        running = [*scheduler.prefilling.values(), *scheduler.decoding.values()]
        held = Counter(page for request in running for page in request.pages)
        pool = scheduler.pool
        assert all(pool.holders(page) == held[page] for page in range(pool.num_pages + 1))
        assert pool.free + len(held) == pool.num_pages
        assert 0 not in held
        slots = [request.slot for request in running]
        assert len({*slots}) == len(slots)
        assert {*slots} <= {*range(self.schedule.config.max_num_seqs)}
        for request in running:
            prefixes = self.truths[request].prefixes
            for position in range(min(request.num_computed, request.num_known)):
                place = self.device.pages[request.pages[position // page_size]][position % page_size]
                assert place == prefixes[position], f"{request.request_id} lost position {position}"
        for request in scheduler.waiting:
            assert (request.pages, request.slot) == ([], -1)

        ends = {}  # what the prefix of each key ends with
        for request, truth in self.truths.items():
            for number, key in enumerate(request.page_keys):
                ends[key] = truth.prefixes[number * page_size - 1] if number else root(request)
        for page, entry in scheduler.index._entries.items():
            assert pool.is_idle(page) or page in held
            prefix = ends[entry.parent]
            for offset, (token,) in enumerate(struct.iter_unpack(">I", entry.tokens)):
                prefix = chain(prefix, token)
                assert self.device.pages[page][offset] == prefix, f"page {page} does not hold what is indexed"

    def _check_end(self) -> None:
        for request, truth in self.truths.items():
            assert self.finishes[request.request_id] == [request.finish]
            tokens = self.tokens[request.request_id]
            assert tokens == request.output
            if request.finish in (FinishReason.STOP, FinishReason.LENGTH):
                assert (tokens, request.finish) == (truth.answer, truth.finish)
            else:
                assert tokens == truth.answer[: len(tokens)]
                assert len(tokens) < len(truth.answer)
        assert self.scheduler.pool.free == self.scheduler.pool.num_pages
        assert sorted(self.scheduler._slots) == list(range(self.schedule.config.max_num_seqs))
        assert self.scheduler.plan(0) is None


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEDULES)
def test_whatever_the_schedule_every_answer_is_the_solo_answer(schedule):
    Simulation(schedule).run()


@pytest.mark.parametrize("what", ["preemptions", "copies", "hits", "zombie rows", "decode of 4", "decode of 2"])
def test_the_schedules_reach_what_they_are_for(what):
    reach = settings(max_examples=500, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    find(SCHEDULES, lambda schedule: Simulation(schedule).run()[what] >= 2, settings=reach)
