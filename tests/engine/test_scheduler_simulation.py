"""The scheduler against a device made of Python: whatever the schedule, every answer is the solo answer.

The simulated device hands its outputs back one step late. After every step it is compared with what the scheduler
believes: block tables, prefix index, snapshots, counts of holders.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from languages import Language, choices
from simulated_device import VOCABULARY, Device, Truth, chain, root

import jaxllm.engine.constrained
from jaxllm.config import CacheGroup, SchedulerConfig
from jaxllm.core import FinishReason, Request, SamplingParams, StepOutput, StepPlan
from jaxllm.engine.constrained import Masks
from jaxllm.engine.deltas import delta_of
from jaxllm.engine.scheduler import Scheduler

STEMS = ([1, 2, 3, 4, 5, 6, 1, 2, 3, 4], [1, 2, 3, 6, 6, 6, 6, 6, 6, 6], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
EXAMPLES = int(os.environ.get("JAXLLM_SCHEDULES", "2000"))


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
    source: tuple[int, ...]
    priority: int
    prompt_logprobs: bool
    language: Language | None
    logprobs: bool  # without them a constrained request jumps ahead
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
                logprobs=0 if self.logprobs or self.language is None else None,
            ),
            stop_ids=self.stop_ids,
            max_total=len(self.prompt) + self.max_tokens,
            seed=self.seed,
            priority=self.priority,
            arrival=float(self.arrives),
            deadline=self.deadline,
            cache_salt=self.salt,
            source=list(self.source),
            constraint=None if self.language is None else self.language.fork(),
        )


@dataclass(frozen=True)
class Schedule:
    specs: tuple[Spec, ...]
    config: SchedulerConfig
    overlapped: bool  # plan a step before the one before it is committed
    flushed: int | None  # tick


def prompt(stem: list[int], length: int, own: list[int]) -> tuple[int, ...]:
    return (*stem[:length], *own) or (1,)


LANGUAGES = [
    choices((1, 2, 3, 4, 5, 6, 1, 2), (1, 2, 3, 6), (5, 5)),  # forced runs, to the end
    Language(({1: 1, 2: 1}, {3: 2}, {4: 3}, {5: 0, 6: 0, 0: 0})),  # runs between choices, for ever; a stop id within
    Language(({2: 1}, {3: 0})),  # nothing but what is forced
    Language(({5: 0, 6: 0},)),  # nothing ever is
    Language(({5: 1, 6: 0}, {1: 0, 2: 2}, {}), fuel=5),  # too expensive, sometimes
]
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
    source=st.sampled_from([(), (), (4,), (1, 2, 3, 4, 5)]),
    priority=st.integers(0, 2),
    prompt_logprobs=st.sampled_from([False, False, False, True]),
    language=st.sampled_from([None] * len(LANGUAGES) + LANGUAGES),
    logprobs=st.sampled_from([False, False, True]),
    aborted=SELDOM,
    deadline=SELDOM,
)


def schedule(
    chosen: list[Spec],
    geometry: tuple[int, tuple[int, ...]],
    kinds: tuple[str, ...],
    window: int,
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
    seen = min(largest, -(-(window - 1) // page_size) + 1)
    source = max(-(-len(spec.source) // page_size) for spec in chosen)
    known = {
        "full": CacheGroup("tokens", 1 + largest + spare_pages),
        "window": CacheGroup("tokens", 1 + seen + spare_pages // 2, window),
        "source": CacheGroup("source", 2 + source + spare_pages // 4),
        "state": CacheGroup("state", 1 + max_num_seqs + 1 + spare_pages // 4),
    }
    config = SchedulerConfig(
        groups=tuple(known[kind] for kind in kinds),
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_seqs + spare_budget, *(len(spec.source) for spec in chosen)),
        max_model_len=64,
        decode_steps=decode_steps,
        enable_prefix_caching=cached,
        policy=policy,
    )
    return Schedule(tuple(chosen), config, overlapped, flushed)


KINDS = [
    ("full",), ("full",), ("window",), ("state",), ("full", "window"), ("full", "state"), ("full", "source"),
    ("window", "state"), ("full", "window", "source", "state"), (),
]  # fmt: skip
SCHEDULES = st.builds(
    schedule,
    st.lists(SPECS, min_size=1, max_size=9),
    st.sampled_from([(1, (1,)), (2, (1,)), (2, (1, 2)), (4, (1,)), (4, (1, 2)), (4, (1, 2, 4))]),
    kinds=st.sampled_from(KINDS),
    window=st.sampled_from([1, 2, 3, 5, 8, 13]),
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
        self.requests = [spec.request(number) for number, spec in enumerate(schedule.specs)]
        self.truths = {request: Truth(request) for request in self.requests}
        self.device = Device(schedule.config, self.truths)
        self.masks = Masks(schedule.config.max_num_seqs, VOCABULARY)
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
                self.pending = self._draw(submitted)
            else:
                self.pending = self._draw(submitted)
                self._commit()
            self._check_books()
            tick += 1
        self._check_end()
        self.device.seen["preemptions"] = self.scheduler.load().preemptions
        self.device.seen["hits"] = self.scheduler.load().prefix_hits
        return self.device.seen

    def _plan(self, tick: int) -> tuple[StepPlan, StepOutput | None] | None:
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

    def _draw(self, submitted: tuple[StepPlan, StepOutput | None] | None) -> tuple[StepPlan, StepOutput] | None:
        """What was submitted, drawn under masks if it waits for some."""
        if submitted is None or submitted[1] is not None:
            return submitted
        plan, _ = submitted
        masks, failed = self.masks.fill(plan.rows)
        output = self.device.draw(plan, masks)
        for request, error in failed:
            assert error == "out of fuel"
            self.scheduler.abort(request.request_id, FinishReason.ERROR)
            self._told(delta_of(request, 0))
        return plan, output

    def _commit(self) -> None:
        if self.pending is None:
            return
        for delta in self.scheduler.commit(*self.pending):
            assert delta.token_ids
            assert delta.error is None
            if self.requests[int(delta.request_id.removeprefix("request-"))].params.logprobs is not None:
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
        stopped = delta.finish is FinishReason.STOP and tokens[-1] in request.stop_ids
        assert delta.stop_token == (tokens[-1] if stopped else None)
        assert stopped or request.constraint is not None or delta.finish is not FinishReason.STOP
        if delta.finish is not None:
            self.finishes[delta.request_id].append(delta.finish)

    def _abort(self, tick: int, even: bool) -> None:
        for number, spec in enumerate(self.schedule.specs):
            if spec.aborted == tick and (number % 2 == 0) == even:
                request = self.scheduler.abort(self.requests[number].request_id)
                if request is not None:
                    self._told(delta_of(request, tick))

    def _flush(self) -> None:
        cache = self.scheduler.cache
        pools = [group.pool for group in self._groups()]
        free, idle = [pool.free for pool in pools], sum(pool.idle for pool in pools)
        assert self.scheduler.flush_prefix_cache() == idle
        assert [pool.free for pool in pools] == free
        assert not any(pool.idle for pool in pools)
        assert not any(len(group.index) for group in [*cache.tokens, *cache.states])

    def _groups(self):
        cache = self.scheduler.cache
        return [*cache.tokens, *cache.sources, *cache.states]

    def _check_books(self) -> None:
        """What the scheduler believes is so on the device, and no page is lost or held by nobody."""
        scheduler, page_size = self.scheduler, self.schedule.config.page_size
        running = [*scheduler.prefilling.values(), *scheduler.decoding.values()]
        held = []
        for group in self._groups():
            counts = Counter(page for request in running for page in request.tables[group.place] if page)
            assert all(group.pool.holders(page) == counts[page] for page in range(group.pool.num_pages + 1))
            assert group.pool.free + len(counts) == group.pool.num_pages
            held.append(counts)
        slots = [request.slot for request in running]
        assert len({*slots}) == len(slots)
        assert {*slots} <= {*range(self.schedule.config.max_num_seqs)}
        for request in running:
            computed = min(request.num_computed, request.num_known)
            prefixes = self.truths[request].prefixes[:computed]
            for group in scheduler.cache.tokens:
                table = request.tables[group.place]
                first = 0 if group.window is None else max(0, request.num_computed - group.window + 1)
                assert not any(table[: first // page_size]) or len(table) == -(-request.reach // page_size)
                for position in range(first, computed):
                    place = self.device.pools[group.place][table[position // page_size]][position % page_size]
                    assert place == prefixes[position], f"{request.request_id} lost position {position}"
            for group in scheduler.cache.sources:
                assert len(request.tables[group.place]) == -(-len(request.source) // page_size)
            for group in scheduler.cache.states:
                assert held[group.place][request.tables[group.place][0]] == 1, "a live state is nobody else's"
        for request in scheduler.waiting:
            assert (request.tables, request.slot) == ([], -1)

        ends = {}  # what the prefix of each key ends with
        for request, truth in self.truths.items():
            for number, key in enumerate(request.page_keys):
                ends[key] = truth.prefixes[number * page_size - 1] if number else root(request)

        def place_of(prefix, tokens):
            for token in tokens:
                prefix = chain(prefix, token)
            return prefix

        for group in scheduler.cache.tokens:
            pages = self.device.pools[group.place]
            for page, entry in group.index._entries.items():
                assert group.pool.is_idle(page) or page in held[group.place]
                prefix = ends[entry.parent]
                for offset, (token,) in enumerate(struct.iter_unpack(">I", entry.tokens)):
                    prefix = chain(prefix, token)
                    assert pages[page][offset] == prefix, f"page {page} does not hold what is indexed"
        for group in scheduler.cache.states:
            for entry, place in group.index._places.items():
                assert group.pool.is_idle(entry)
                assert self.device.pools[group.place][entry] == [place_of(ends[place.prefix], place.tokens)]

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
        assert all(group.pool.free == group.pool.num_pages for group in self._groups())
        assert sorted(self.scheduler._slots) == list(range(self.schedule.config.max_num_seqs))
        assert self.scheduler.plan(0) is None


@pytest.fixture(scope="module", autouse=True)
def _jumps_are_short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxllm.engine.constrained, "LEAST_JUMP", 2)
        yield


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEDULES)
def test_whatever_the_schedule_every_answer_is_the_solo_answer(schedule):
    Simulation(schedule).run()


@pytest.mark.parametrize(
    "what",
    [
        "preemptions", "hits", "zombie rows", "decode of 4", "decode of 2", "copies of tokens", "copies of state",
        "pages left behind", "sources read", "sources shared", "jumps",
    ],
)  # fmt: skip
def test_the_schedules_reach_what_they_are_for(what):
    reach = settings(max_examples=500, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    find(SCHEDULES, lambda schedule: Simulation(schedule).run()[what] >= 2, settings=reach)
