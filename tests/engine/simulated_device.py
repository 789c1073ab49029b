"""A device made of Python.

It keeps, for each place of each page of each cache group, a hash of the whole prefix (and salt) that was computed into
it, and of each recurrent state the hash of the prefix it has seen. It executes plans in order, reads back all that a
token sees, draws from that, under masks where there are some, and ends rows on its own at their limit or stop token.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from jaxllm.config import SchedulerConfig
from jaxllm.core import FinishReason, Logprobs, PageCopy, Request, Row, RowOutput, StepOutput, StepPlan

VOCABULARY = 7


def chain(prefix: int, token: int) -> int:
    """What a token's place in the cache holds: it stands for the token and all before it.

    Hashes of tuples of integers are the same in every run.
    """
    return hash((prefix, token))


def draw(prefix: int, seed: int, allowed: Iterable[int] | None = None) -> int:
    tokens = sorted(range(VOCABULARY) if allowed is None else allowed)
    return tokens[(hash((prefix, seed)) >> 7) % len(tokens)]


class Truth:
    """What a request must see and answer, computed alone and at once."""

    def __init__(self, request: Request):
        self.tokens = list(request.prompt)
        self.prefixes = []  # prefixes[p] is what the place of position p must hold
        prefix = root(request)
        language = None if request.constraint is None else request.constraint.fork()
        end = None
        while True:
            for token in self.tokens[len(self.prefixes) :]:
                prefix = chain(prefix, token)
                self.prefixes.append(prefix)
            if len(self.tokens) == request.max_total:
                break
            self.tokens.append(draw(prefix, request.seed, None if end or language is None else language.allowed))
            length = len(self.tokens) - len(request.prompt)
            stops = self.tokens[-1] in request.stop_ids and length >= request.params.min_tokens
            if end is None and (stops | (language is not None and not language.accept(self.tokens[-1]))):
                end = length
        # The device may run on behind an end that only the host knows; the answer ends there.
        self.answer = self.tokens[len(request.prompt) :][:end]
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

    def execute(self, plan: StepPlan) -> StepOutput | None:
        """The step's output; None if it waits for masks."""
        assert plan.rows
        assert len({row.slot for row in plan.rows}) == len(plan.rows)
        self._copy(plan.copies)
        self._read(plan.rows)
        self.seen[f"{plan.kind} of {plan.num_steps}"] += 1
        for row in plan.rows:
            if plan.kind == "extend":
                self._extend(row)
            else:
                self._decode(row, plan.num_steps)
        return None if plan.constrained else self.draw(plan)

    def draw(self, plan: StepPlan, masks: np.ndarray | None = None) -> StepOutput:
        """What a plan yields whose first tokens are computed. masks: [rows at least, 1] int32."""
        run = self._drawn_extend if plan.kind == "extend" else self._drawn_decode
        allowed = [None if masks is None else bits(mask) for mask in (plan.rows if masks is None else masks)]
        return StepOutput([run(row, plan.num_steps, allowed[i]) for i, row in enumerate(plan.rows)])

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

    def _extend(self, row: Row) -> None:
        request = row.request
        if row.fresh:
            self.seen["jumps"] += self.slots[row.slot] is not None and self.slots[row.slot].request is request
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
            return
        assert row.start == slot.position
        assert len(row.tokens) == row.count or (not row.tokens and row.count == 1)
        for token in row.tokens or [slot.last]:
            assert token is not None
            self._compute(slot, token)

    def _drawn_extend(self, row: Row, num_steps: int, allowed: list[int] | None) -> RowOutput:
        assert num_steps == 1
        slot, params = self.slots[row.slot], row.request.params
        assert slot is not None
        if slot.done:
            return RowOutput([])
        drawn = [self._draw(slot, allowed)] if row.draws else []
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            prompt_logprobs = logprobs(range(row.start + 1, row.start + row.count + 1))
        return RowOutput(drawn, logprobs(drawn) if params.logprobs is not None else None, prompt_logprobs)

    def _decode(self, row: Row, num_steps: int) -> None:
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
        self._feed(slot)

    def _drawn_decode(self, row: Row, num_steps: int, allowed: list[int] | None) -> RowOutput:
        slot = self.slots[row.slot]
        assert slot is not None
        assert row.request.constraint is None or num_steps == 1
        drawn: list[int] = []
        for step in range(num_steps):
            if step:
                self._feed(slot)
            if not slot.done:
                assert step < row.count, "the host reserved less than the row's limit allows"
                drawn.append(self._draw(slot, allowed))
        return RowOutput(drawn, logprobs(drawn) if row.request.params.logprobs is not None else None)

    def _feed(self, slot: Slot) -> None:
        """Computes the token drawn last, or, behind the end, garbage."""
        if slot.done:
            for pool in self.pools:
                pool[0] = ["garbage"] * len(pool[0])
            return
        assert slot.last is not None
        self._compute(slot, slot.last)

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

    def _draw(self, slot: Slot, allowed: list[int] | None) -> int:
        request = slot.request
        token = draw(self.truths[request].prefixes[slot.position - 1], request.seed, allowed)
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


def bits(mask: np.ndarray) -> list[int]:
    """The tokens that a mask allows."""
    return [token for token in range(VOCABULARY) if mask[token // 32] >> token % 32 & 1]
