"""Who computes what in the next step: requests go in, a `StepPlan` comes out, a `StepOutput` comes back.

A request is in one of four places:

- `waiting`, in order, without slot or pages: it is new, or was preempted and will be computed again;
- `prefilling`: it has a slot and pages for every token that exists, and some of them are not computed;
- `decoding`: only its newest token is not computed, and that token is the one its slot holds. Where a grammar forces
  tokens, they are known before they are drawn, and it is back among the prefilling;
- on its way out: the steps already submitted draw all it may have. It gave slot and pages back, as whatever
  uses them next runs behind those steps, and ends when its tokens arrive.

Steps run on the device in the order of their submission, and a plan is made while the step before it may
still be running. Hence the rule that everything here rests on: what a submitted step writes, any later plan may
read; what a submitted step still reads or writes, any later plan may reuse. A request that ended at a commit
may still have a row in the one step that was submitted meanwhile; its tokens are ignored, and its writes land in
pages before their next holder's do.
"""

import itertools
import math
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

from jaxllm.cache import CacheSpace
from jaxllm.config import SchedulerConfig
from jaxllm.core import Delta, FinishReason, Load, Request, Row, StepOutput, StepPlan
from jaxllm.engine.constrained import Advance, advance
from jaxllm.engine.deltas import collect_prompt_logprobs, concatenate, delta_of, slice_logprobs
from jaxllm.engine.pace import Pace
from jaxllm.engine.stop import accept, stopped
from jaxllm.errors import ConfigError, QueueFullError, RequestError

ALL_FORBIDDEN = (
    "no token may be drawn here: allowed_token_ids, bad_words, min_tokens, logit_bias and logits processors together "
    "forbid all of them; allow more"
)

_by_order = attrgetter("order")


class Scheduler:
    """Continuous batching over one cache.

    step_seconds(rows) is the measured time of one decode step of that many rows, extend_seconds those of the programs
    that compute prompts, by their sizes; without them no step is held too long for the stream interval.

    Ending a request from outside (`abort`, `expire`) returns the Request; `delta_of(request)` is what its
    owner is to be told.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        step_seconds: Callable[[int], float] | None = None,
        extend_seconds: Sequence[tuple[int, float]] = (),
    ):
        if config.max_num_batched_tokens < config.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens={config.max_num_batched_tokens} is below max_num_seqs={config.max_num_seqs}: "
                "every running request takes a token of each step; raise the one or lower the other"
            )
        if 1 not in config.decode_steps or max(config.decode_steps) > config.page_size:
            raise ConfigError(
                f"decode_steps={config.decode_steps}: must hold 1 and nothing above the page size {config.page_size}"
            )
        self.config = config
        self.cache = CacheSpace(config)
        self.waiting: list[Request] = []
        self.prefilling: dict[str, Request] = {}
        self.decoding: dict[str, Request] = {}
        self._step_seconds = step_seconds or (lambda rows: 0.0)
        self._pace = Pace(config.stream_interval, self._step_seconds, extend_seconds)
        self._steps_descending = sorted(set(config.decode_steps), reverse=True)
        self._requests: dict[str, Request] = {}
        self._entering: set[str] = set()  # those let in that wait for their first step
        self._slots = list(reversed(range(config.max_num_seqs)))
        self._arrivals = itertools.count()
        self._followers: dict[str, list[Request]] = {}  # by the leader that computes their prompt
        self._next_deadline = math.inf  # no request's deadline is earlier
        self._reserved = 0  # free pages that the decoding requests need in the plan being made
        self._load = Load(pages_total=self.cache.size[0])

    @property
    def has_work(self) -> bool:
        """Some request has not ended."""
        return bool(self._requests)

    @property
    def num_queued(self) -> int:
        """Places of the queue that are taken: one by each request that waits for its first step, until then. A family
        has its first member's; those that were preempted need none."""
        return len(self._entering)

    def load(self) -> Load:
        waiting = len(self.waiting) + sum(map(len, self._followers.values()))
        running = max(0, len(self._requests) - waiting)  # another thread may ask in the midst of an end
        return replace(self._load, running=running, waiting=waiting, pages_free=self.cache.size[1])

    def add(self, request: Request, entering: bool = True) -> None:
        """Queues a request; one that has a leader waits until the leader's prompt is computed.

        entering: it is new, and not a part of what was let in before: the queue's limit holds for it.

        Raises QueueFullError, or RequestError if it leaves no room for output, if the pool could not hold it
        even alone, or if its id is that of a request which has not ended.
        """
        if request.request_id in self._requests:
            raise RequestError(
                f"request_id={request.request_id!r}: a request of this id is running; choose another", "request_id"
            )
        if not 0 < len(request.prompt) < request.max_total:
            raise RequestError(
                f"prompt has {len(request.prompt)} tokens: it needs one at least, and room for one more "
                f"within {request.max_total}",
                "prompt",
            )
        if len(request.source) > self.config.max_num_batched_tokens:
            raise RequestError(
                f"a source of {len(request.source)} tokens is read in one step, and a step has at most "
                f"{self.config.max_num_batched_tokens}: send a shorter one, or raise max_num_batched_tokens",
                "prompt",
            )
        self.cache.check(request)
        if entering and self.num_queued >= self.config.max_queued:
            raise QueueFullError(
                f"{self.config.max_queued} requests wait already: try again later, or raise --max-queued"
            )
        arrival = next(self._arrivals)
        urgency = (request.priority, request.arrival) if self.config.policy == "priority" else (0, 0.0)
        family = request.family
        if family is not None and family.arrival < 0:
            family.arrival = arrival
        request.order = (*urgency, arrival if family is None else family.arrival, arrival)
        if not request.page_keys:  # a beam brings those of the one that it goes on from
            request.page_keys = [self.cache.root(request)]
        if request.deadline is not None:
            self._next_deadline = min(self._next_deadline, request.deadline)
        leader = request.leader
        if leader is not None and leader.finish is None and not leader.output and not leader.num_inflight:
            self._followers.setdefault(leader.request_id, []).append(request)
        else:
            insort(self.waiting, request, key=_by_order)
        self._requests[request.request_id] = request  # last, so that what cannot be queued leaves nothing behind
        if entering:
            self._entering.add(request.request_id)

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT) -> Request | None:
        """Ends a request at once; None if there is none of this id. Its slot and pages come back now."""
        request = self._requests.get(request_id)
        if request is not None:
            self._end(request, reason)
        return request

    def expire(self, now: float) -> list[Request]:
        """Ends the requests whose deadline has passed."""
        if now < self._next_deadline:
            return []
        self._next_deadline = math.inf
        expired = []
        for request in self._requests.values():
            if request.deadline is None:
                continue
            if request.deadline <= now:
                expired.append(request)
            else:
                self._next_deadline = min(self._next_deadline, request.deadline)
        for request in expired:
            self._end(request, FinishReason.DEADLINE)
        return expired

    def flush_prefix_cache(self) -> int:
        """Forgets every cached prefix; returns how many pages held nothing else. Running requests go on."""
        return self.cache.flush(self._running())

    # --- planning ---

    def plan(self, now: float) -> StepPlan | None:
        """The next step, which the caller submits; None when no request can advance before the next commit."""
        self._reserved = self._reserve_for_decode()
        chunks = self._plan_chunks(self._room(), now)
        while self.prefilling and not chunks and not self.decoding:
            # The windows of several prompts leave none of them room to move: the last in order gives way.
            self._preempt(max(self._running(), key=_by_order))
            self._reserved = 0
            chunks = self._plan_chunks(self.config.max_num_batched_tokens, now)
        if chunks:
            num_decoding = len(self.decoding)
            plan = StepPlan("extend", self._decode_rows(1) + chunks)
            self._pace.spend(plan.num_tokens, num_decoding)
            self._load.steps_extend += 1
        elif self.decoding:
            steps = self._choose_steps()
            self._pace.earn(len(self.decoding), steps)
            plan = StepPlan("decode", self._decode_rows(steps), num_steps=steps)
            self._load.steps_decode += 1
        else:
            return None
        self._account_for_chunks(chunks)
        plan.copies = self.cache.end_plan()
        return plan

    def _room(self) -> int:
        """Tokens that prompts may have of the next step."""
        num_prompts = len(self.prefilling) + len(self.waiting)
        return self._pace.room(
            self.config.max_num_batched_tokens - len(self.decoding), len(self.decoding), num_prompts, self._todo,
            hurry=any(request.jumped for request in self.prefilling.values()),
        )  # fmt: skip

    def _todo(self) -> int:
        """Tokens still to be computed of the prompts that are admitted, or may be."""
        admissible = itertools.islice(self.waiting, len(self._slots))
        return sum(request.todo for request in (*self.prefilling.values(), *admissible))

    def _reserve_for_decode(self) -> int:
        """Free pages that the decoding requests need for one step, preempting the last in order until they suffice.

        Each preemption helps: a request that is not short of a page has room behind its last computed token,
        in a page which is not full and so is its own alone; one that is short needs a page less. The first in
        order is never preempted while another runs, and alone it fits (`add` saw to that), so it ends some day.
        """
        if self.cache.free >= len(self.decoding) and not self.prefilling and not (self.waiting and self._slots):
            return 0  # enough for all, and nobody else takes any: no need to count
        short = self._short_of_pages(1)
        while len(short) > self.cache.free:
            victim = max(self._running(), key=_by_order)
            self._preempt(victim)
            if victim in short:
                short.remove(victim)
        return len(short)

    def _short_of_pages(self, steps: int) -> list[Request]:
        """The decoding requests whose pages do not reach as far as `steps` more tokens, or their limit.

        Each is one page short in every group, as no decode program has more steps than a page has tokens.
        """
        short = []
        for request in self.decoding.values():
            tokens = len(request.prompt) + len(request.output) + request.num_inflight
            if min(tokens + steps, request.max_total) - 1 > request.reach:
                self.cache.trim(request)
                short.append(request)
        return short

    def _preempt(self, request: Request) -> None:
        """Back into the queue, to be computed again. Tokens in flight are valid and will be appended."""
        self._release(request)
        request.num_preemptions += 1
        self._load.preemptions += 1
        insort(self.waiting, request, key=_by_order)

    def _plan_chunks(self, budget: int, now: float) -> list[Row]:
        """Prompt chunks of at most `budget` tokens together, in order over the admitted and the waiting. The sources of
        the newly admitted have no more tokens than a step.

        What they take leaves the reserved pages free.
        """
        rows: list[Row] = []
        unread = self.config.max_num_batched_tokens  # of sources, which an encoder reads whole, before the step
        prefilling = deque(sorted(self.prefilling.values(), key=_by_order))
        admitting = True
        while budget > 0:
            waiting = self.waiting[0] if admitting and self.waiting else None
            if waiting is not None and (not prefilling or waiting.order < prefilling[0].order):
                to_read = self.cache.to_read(waiting)
                admitting = to_read <= unread and self._admit_or_displace(waiting, now)
                if not admitting:
                    continue  # none behind the first may overtake it, or it might wait forever
                unread -= to_read
                request, fresh = waiting, True
            elif prefilling:
                request = prefilling.popleft()
                fresh = request.jumped
                if request.slot < 0:
                    continue  # displaced
            else:
                break
            start = request.num_computed
            count = self.cache.may_compute(request, min(request.todo, budget), self._reserved)
            if count == 0:
                break  # none behind it may take the pages that it waits for
            if start + count > request.reach:
                self.cache.grow(request, start + count)
            budget -= count
            request.jumped = False
            tokens = request.token_ids(start, start + count)
            draws = count == request.todo
            rows.append(Row(request, request.slot, start, count, tokens, fresh, draws, request.tables, []))
        return rows

    def _admit_or_displace(self, request: Request, now: float) -> bool:
        """Admits the first of the queue; running ones of a lower priority give way to it, the last in order first.

        Those have no row in the plan yet: chunks are planned in order, and the rows of decodes behind them.
        """
        while not self._admit(request, now):
            last = max(self._running(), key=_by_order, default=None)
            if request.num_inflight or last is None or last.order[0] <= request.order[0]:
                return False
            self._preempt(last)
            self._reserved = len(self._short_of_pages(1))  # not its own, and the others' even where none were counted
        return True

    def _admit(self, request: Request, now: float) -> bool:
        """Gives the first of the queue a slot and pages for all its tokens, cached ones where there are.

        Not while tokens of it are in flight: they would have to be computed too, and nobody knows them.
        """
        if not self._slots or request.num_inflight:
            return False
        if not self.cache.admit(request, self._reserved, alone=not (self.prefilling or self.decoding)):
            return False
        del self.waiting[0]
        self.prefilling[request.request_id] = request
        request.slot = self._slots.pop()
        if request.first_scheduled is None:  # after a preemption it finds its own pages, which saved nobody anything
            request.first_scheduled = now
            request.num_cached = request.num_computed
            self._entering.discard(request.request_id)
            self._load.prompt_tokens += len(request.source) + len(request.prompt)
            if request.leader is None and self.cache.may_read(request):
                self._load.prefix_queries += len(request.prompt)
                self._load.prefix_hits += request.num_cached
        return True

    def _account_for_chunks(self, chunks: list[Row]) -> None:
        """Advances the requests of these rows to where the plan takes them."""
        for row in chunks:
            request = row.request
            request.num_computed += row.count
            self.cache.index(request)
            if row.draws:
                request.num_inflight += 1
                self._release_followers(request)
                if request.num_tokens == request.max_total:
                    self._release(request)
                else:
                    del self.prefilling[request.request_id]
                    self.decoding[request.request_id] = request

    def _release_followers(self, leader: Request) -> None:
        """The leader's prompt is computed by the plan in the making: from the next one on its pages may be shared."""
        for follower in self._followers.pop(leader.request_id, ()):
            insort(self.waiting, follower, key=_by_order)

    def _promote_follower(self, leader: Request) -> None:
        """The leader has ended. Where its prompt was never computed, the first of its followers leads the others."""
        followers = self._followers.pop(leader.request_id, [])
        if followers:
            first, *rest = followers
            first.leader = None
            for follower in rest:
                follower.leader = first
            self._followers[first.request_id] = rest
            insort(self.waiting, first, key=_by_order)

    def _choose_steps(self) -> int:
        """The most decode steps that the pages, the stream interval and the longest remaining row allow.

        One where a mask has to be made of what was drawn before.
        """
        if any(request.constraint is not None for request in self.decoding.values()):
            return 1
        seconds = self._step_seconds(len(self.decoding))
        for steps in self._steps_descending:
            if (
                steps * seconds <= self.config.stream_interval
                and any(request.max_total - request.num_tokens >= steps for request in self.decoding.values())
                and (self.cache.free >= len(self.decoding) or self.cache.free >= len(self._short_of_pages(steps)))
            ):
                return steps
        return 1  # whatever the clock says; its pages are reserved

    def _decode_rows(self, steps: int) -> list[Row]:
        """A row for every decoding request, all of which advance by `steps` or to their limit."""
        rows = []
        leaving = []
        for request in self.decoding.values():
            inflight = request.num_inflight
            tokens = len(request.prompt) + len(request.output) + inflight
            count = min(steps, request.max_total - tokens)
            known = [] if inflight else request.output[-1:]
            end = tokens - 1 + count
            new_pages = self.cache.grow(request, end) if end > request.reach else []
            rows.append(Row(request, request.slot, tokens - 1, count, known, False, True, request.tables, new_pages))
            request.num_computed += count
            request.num_inflight = inflight + count
            if tokens + count == request.max_total:
                leaving.append(request)
        for request in leaving:
            self._release(request)
        return rows

    # --- what comes back ---

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """A step with prompts has taken the device so long."""
        self._pace.learn(plan.num_tokens, seconds)

    def commit(self, plan: StepPlan, output: StepOutput) -> list[Delta]:
        """Appends what a step drew, ends the requests that it ends.

        Returns a Delta for each request that got tokens. Rows of requests that ended meanwhile are ignored.
        Prompt logprobs come with a request's first token, however many steps computed them.
        """
        now = time.monotonic()
        page_size = self.config.page_size
        deltas = []
        for row, result in zip(plan.rows, output.rows, strict=True):
            request = row.request
            if request.finish is not None:
                continue
            if result.prompt_logprobs is not None:
                collect_prompt_logprobs(request, row, result.prompt_logprobs)
            if not row.draws:
                continue
            if request.num_foretold:
                request.num_foretold -= 1
                continue
            draws = row.count if plan.kind == "decode" else 1
            if request.constraint is None:
                new = Advance(*accept(request, result.tokens), error=ALL_FORBIDDEN)
            else:
                new = advance(request, result.tokens)
            tokens, finish = new.tokens, new.finish
            assert finish is not None or len(tokens) >= draws, (
                f"{request.request_id}: {len(tokens)} of {draws} tokens came back, and none of them ends it"
            )
            request.num_inflight -= draws
            request.output += tokens
            self._load.generation_tokens += len(tokens)
            if request.first_token is None:
                request.first_token = now
            if finish is not None:
                self._end(request, finish)
            elif len(tokens) > draws:
                self._jump(request)
            elif request.num_computed >= page_size * (request.num_indexed + 1):
                self.cache.index(request)
            delta = delta_of(request, now, tokens)
            delta.error = new.error if finish is FinishReason.ERROR else None
            if result.logprobs is not None:
                delta.logprobs = slice_logprobs(result.logprobs, 0, len(tokens))
            if finish is FinishReason.STOP and tokens[-1] in request.stop_ids:
                delta.stop_token = tokens[-1]
            if request.prompt_logprobs:
                delta.prompt_logprobs = concatenate(request.prompt_logprobs)
                request.prompt_logprobs = []
            deltas.append(delta)
        return deltas

    def delta(self, request: Request, now: float) -> Delta:
        """What the owner of a request that has ended is told."""
        return delta_of(request, now)

    # --- pages and places ---

    def _running(self) -> Iterable[Request]:
        return itertools.chain(self.prefilling.values(), self.decoding.values())

    def _release(self, request: Request) -> None:
        """Takes a running request's slot and pages back; what they hold stays in the prefix cache."""
        self.cache.release(request)
        self._slots.append(request.slot)
        self.prefilling.pop(request.request_id, None)
        self.decoding.pop(request.request_id, None)
        request.slot = -1
        request.num_computed = 0

    def _jump(self, request: Request) -> None:
        """The host knows tokens that the device does not: they are computed as a prompt's are, and the one behind them
        is drawn. If a draw is in flight, it is one of theirs, and of no more use."""
        request.num_foretold += request.num_inflight
        request.num_inflight = 0
        if request.slot >= 0:
            del self.decoding[request.request_id]
            self.prefilling[request.request_id] = request
            # What the slot holds may be of another answer: the draw in flight knows nothing of these tokens.
            request.jumped = request.source_read = True

    def _end(self, request: Request, reason: FinishReason) -> None:
        """Ends a request wherever it is."""
        request.finish = reason
        if reason is FinishReason.STOP and stopped(request):
            # The device, which knows every stop id, ended the row here as well, and never computed the last token.
            request.num_computed = min(request.num_computed, request.num_known - 1)
        del self._requests[request.request_id]
        self._entering.discard(request.request_id)
        self._promote_follower(request)
        if request.slot >= 0:
            self._release(request)
            return
        if request.leader is not None and request in (others := self._followers.get(request.leader.request_id, [])):
            others.remove(request)
            return
        place = bisect_left(self.waiting, request.order, key=_by_order)
        if place < len(self.waiting) and self.waiting[place] is request:
            del self.waiting[place]
