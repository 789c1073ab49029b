"""The scheduler against a device made of Python: whatever the schedule, every answer is the solo answer.

The simulated device keeps, for each place of each page of each cache group, a hash of the whole prefix (and salt)
that was computed into it, and of each recurrent state the hash of the prefix it has seen. It executes plans in order,
reads back all that a token sees, draws from that, ends rows on its own at their limit or stop token, and hands its
outputs back one step late. After every step it is compared with what the scheduler believes: block tables, prefix
index, snapshots, counts of holders.
"""

import os
import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from jaxllm.config import CacheGroup, SchedulerConfig
from jaxllm.core import FinishReason, Logprobs, PageCopy, Request, Row, RowOutput, SamplingParams, StepOutput, StepPlan
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
    return sum(request.cache_salt.encode()) + hash(tuple(request.source))


@dataclass
class Slot:
    request: Request
    position: int  # of the token to compute next
    tables: list[list[int]] = field(default_factory=list)
    last: int | None = None
    done: bool = False


class Device:
    """Executes plans. It knows of a request what a runner would send."""

    def __init__(self, config: SchedulerConfig, truths: dict[Request, Truth]):
        self.page_size = config.page_size
        self.groups = list(enumerate(config.groups))
        self.max_tokens = config.max_num_batched_tokens
        self.truths = truths
        # A page is a list of places; an entry of states has one.
        self.pools: list[list[list[object]]] = [
            [[None] * (1 if group.kind == "state" else config.page_size) for _ in range(group.num_pages)]
            for group in config.groups
        ]
        self.slots: list[Slot | None] = [None] * config.max_num_seqs
        self.seen: Counter[str] = Counter()

    def execute(self, plan: StepPlan) -> StepOutput:
        assert plan.rows
        assert len({row.slot for row in plan.rows}) == len(plan.rows)
        self._copy(plan.copies)
        self._read(plan.rows)
        self.seen[f"{plan.kind} of {plan.num_steps}"] += 1
        run = self._extend if plan.kind == "extend" else self._decode
        return StepOutput([run(row, plan.num_steps) for row in plan.rows])

    def _copy(self, copies: list[PageCopy]) -> None:
        targets = {(group, target) for group, _, target in copies}
        assert len(targets) == len(copies)
        assert not targets & {(group, source) for group, source, _ in copies}, "copies may run in any order"
        for group, source, target in copies:
            self.pools[group][target] = list(self.pools[group][source])
            self.seen[f"copies of {self.groups[group][1].kind}"] += 1

    def _read(self, rows: list[Row]) -> None:
        """Sources, before the step that computes what looks at them."""
        read = [row for row in rows if row.fresh and row.request.source and not row.request.source_read]
        for place, group in self.groups:
            if group.kind == "source":
                assert sum(len(row.request.source) for row in read) <= self.max_tokens
                self.seen["sources read"] += len(read)
                self.seen["sources shared"] += sum(row.fresh and row.request.source_read for row in rows)
                for row in read:
                    source, pages = row.request.source, row.tables[place]
                    for position in range(len(source)):
                        page = pages[position // self.page_size]
                        self.pools[place][page][position % self.page_size] = (*source, position)

    def _extend(self, row: Row, num_steps: int) -> RowOutput:
        assert num_steps == 1
        request = row.request
        if row.fresh:
            self.slots[row.slot] = Slot(request, row.start)
        slot = self.slots[row.slot]
        assert slot is not None
        assert slot.request is request
        slot.tables = [list(table) for table in row.tables]
        self.seen["pages left behind"] += sum(table.count(0) for table in row.tables)
        if slot.done:  # the host does not know yet; whatever such a row writes must harm nobody
            self.seen["zombie rows"] += 1
            for position in range(row.start, row.start + row.count):
                self._write(slot, position, "garbage")  # of pages that may be another's by now
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
        assert len({group for group, _, _ in row.new_pages}) == len(row.new_pages)
        for group, index, page in row.new_pages:
            assert index == len(slot.tables[group])
            slot.tables[group].append(page)
        self.seen["zombie rows"] += slot.done
        assert slot.done or slot.position == row.start
        drawn = []
        for step in range(num_steps):
            if slot.done:
                for pool in self.pools:
                    pool[0] = ["garbage"] * len(pool[0])
                continue
            assert step < row.count, "the host reserved less than the row's limit allows"
            assert slot.last is not None
            self._compute(slot, slot.last)
            drawn.append(self._draw(slot))
        return RowOutput(drawn, logprobs(drawn))

    def _compute(self, slot: Slot, token: int) -> None:
        """Computes the token at the slot's position, from all that is seen there."""
        position, prefixes = slot.position, self.truths[slot.request].prefixes
        for place, group in self.groups:
            if group.kind == "state" and position > 0:
                assert self.pools[place][slot.tables[place][0]] == [prefixes[position - 1]]
            elif group.kind == "tokens":
                table = slot.tables[place]
                for seen in range(0 if group.window is None else max(0, position - group.window + 1), position):
                    held = self.pools[place][table[seen // self.page_size]][seen % self.page_size]
                    assert held == prefixes[seen], f"position {position} does not see {seen}"
            elif group.kind == "source":
                source, table = slot.request.source, slot.tables[place]
                held = [self.pools[place][page][i] for page in table for i in range(self.page_size)]
                assert held[: len(source)] == [(*source, i) for i in range(len(source))]
        before = prefixes[position - 1] if position else root(slot.request)
        self._write(slot, position, chain(before, token))
        slot.position += 1

    def _draw(self, slot: Slot) -> int:
        request = slot.request
        token = draw(self.truths[request].prefixes[slot.position - 1], request.seed)
        slot.last = token
        total = slot.position + 1
        stops = token in request.stop_ids and total - len(request.prompt) >= request.params.min_tokens
        slot.done = stops or total == request.max_total
        return token

    def _write(self, slot: Slot, position: int, value: object) -> None:
        for place, group in self.groups:
            table = slot.tables[place]
            if group.kind == "state":
                assert table[0] != 0
                self.pools[place][0 if slot.done else table[0]] = [value]
            elif group.kind == "tokens" and not slot.done:
                page = table[position // self.page_size]
                assert page != 0
                self.pools[place][page][position % self.page_size] = value


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
    source: tuple[int, ...]
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
            source=list(self.source),
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
    source=st.sampled_from([(), (), (4,), (1, 2, 3, 4, 5)]),
    priority=st.integers(0, 2),
    prompt_logprobs=st.sampled_from([False, False, False, True]),
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


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEDULES)
def test_whatever_the_schedule_every_answer_is_the_solo_answer(schedule):
    Simulation(schedule).run()


@pytest.mark.parametrize(
    "what",
    [
        "preemptions", "hits", "zombie rows", "decode of 4", "decode of 2", "copies of tokens", "copies of state",
        "pages left behind", "sources read", "sources shared",
    ],
)  # fmt: skip
def test_the_schedules_reach_what_they_are_for(what):
    reach = settings(max_examples=500, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    find(SCHEDULES, lambda schedule: Simulation(schedule).run()[what] >= 2, settings=reach)
