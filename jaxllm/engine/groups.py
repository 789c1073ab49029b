"""Requests that are answered by several sequences: n samples of one prompt, and the beams of a search.

The scheduler knows their members alone, each a request of its own; whoever asked knows the request alone, and gets
deltas with the index of a sample. A group stands between.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from jaxllm.core import Delta, Family, FinishReason, Logprobs, Request, SamplingParams

OF_A_GROUP = "\0"
"""Between a request's id and its member's number; in no id that a request is given."""


class Group(Protocol):
    """What the engine asks of a group.

    Attributes:
        request: what was asked for.
        members: the requests of it that have not ended, by id.
    """

    request: Request
    members: dict[str, Request]

    def start(self) -> list[Request]:
        """The first members; the queue's limit holds for the first of them."""

    def take(self, delta: Delta) -> tuple[list[Delta], list[Request]]:
        """What a member's delta means for the request, and the members that follow from it."""

    def chosen(self, index: int | None) -> list[Request]:
        """The members to end, if this sample is to end; None is all of them."""


def group_of(request: Request) -> Group | None:
    """The group that answers a request; None where the request itself is its only member."""
    if request.params.use_beam_search:
        return Beams(request)
    return Samples(request) if request.params.num_samples > 1 else None


class Samples:
    """best_of (or n) draws of one prompt, told apart by their sample index, which is keyed into the draws.

    The first computes the prompt, the others share its pages. Every sample is told of; to choose the n best of
    best_of needs their texts' ends, and is for whoever makes texts.
    """

    def __init__(self, request: Request):
        self.request = request
        self.members: dict[str, Request] = {}
        self._indices: dict[str, int] = {}
        self._num_cached: int | None = None  # of the one that computed the prompt: the others find its pages

    def start(self) -> list[Request]:
        asked, params = self.request, self.request.params
        if params.num_samples > params.n and params.logprobs is None:
            params = dataclasses.replace(params, logprobs=0)  # what they are compared by
        follower_params = dataclasses.replace(params, prompt_logprobs=None)
        family = Family(asked.request_id)
        leader: Request | None = None
        for index in range(params.num_samples):
            member = _member(asked, index, family, asked.prompt, params if leader is None else follower_params)
            member.max_total, member.stop_ids, member.leader = asked.max_total, asked.stop_ids, leader
            member.sample_index = asked.sample_index + index
            member.constraint = asked.constraint.fork() if asked.constraint is not None else None
            leader = leader or member
            self.members[member.request_id] = member
            self._indices[member.request_id] = index
        return list(self.members.values())

    def take(self, delta: Delta) -> tuple[list[Delta], list[Request]]:
        index = self._indices[delta.request_id]
        if delta.finish is not None:
            del self.members[delta.request_id]
        if self._num_cached is None:
            self._num_cached = delta.num_cached
        delta.request_id, delta.index, delta.num_cached = self.request.request_id, index, self._num_cached
        delta.more = bool(self.members)
        return [delta], []

    def chosen(self, index: int | None) -> list[Request]:
        return [m for name, m in self.members.items() if index is None or self._indices[name] == index]


class _Beam(NamedTuple):
    """A continuation: its tokens, the log probability and rank of each, and the sum of the former.

    parent: who computed all but the last token.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    total: float = 0.0
    parent: Request | None = None


class Beams:
    """Beam search as transformers does it: the sequence of steps, the scores and the ends are those of its
    `_beam_search` (without sampling).

    A step is one request per beam for one token, which tells of the likeliest continuations; a beam goes on from
    its parent's pages. Nothing is told before the end.
    """

    def __init__(self, request: Request):
        self.request = request
        self.members: dict[str, Request] = {}
        self._width = request.params.num_samples
        self._room = request.max_total - len(request.prompt)
        self._family = Family(request.request_id)
        self._names = itertools.count()
        self._running = [_Beam()]
        self._continuations: dict[int, Logprobs] = {}  # by the beam's place among the running
        self._places: dict[str, int] = {}
        self._asked: list[Request] = []  # of each place among the running
        self._finished: list[tuple[float, _Beam]] = []  # the best first
        self._first: Delta | None = None

    @staticmethod
    def candidates(width: int, num_stop_ids: int) -> int:
        """Continuations looked at in a step: enough that `width` go on, even if the likeliest all end."""
        return max(2, 1 + num_stop_ids) * width

    def start(self) -> list[Request]:
        return list(self._members())

    def take(self, delta: Delta) -> tuple[list[Delta], list[Request]]:
        if delta.request_id not in self.members:
            return [], []  # of a search that has ended meanwhile
        if self._first is None:
            self._first = delta
        del self.members[delta.request_id]
        if delta.finish is None or delta.logprobs is None:  # it was ended from outside
            reason = delta.finish or FinishReason.ERROR
            return list(self._answer(delta, reason)), []
        self._continuations[self._places[delta.request_id]] = delta.logprobs
        if self.members:
            return [], []
        if self._step():
            return [], list(self._members())
        return list(self._answer(delta, None)), []

    def chosen(self, index: int | None) -> list[Request]:
        return list(self.members.values())

    def _members(self) -> Iterator[Request]:
        """A request per running beam."""
        asked = self.request
        params = SamplingParams(
            max_tokens=1,
            temperature=0,
            logprobs=self.candidates(self._width, len(asked.stop_ids)),
            prompt_logprobs=asked.params.prompt_logprobs if self._first is None else None,
            detokenize=False,
        )
        self._places.clear()
        self._asked.clear()
        for place, beam in enumerate(self._running):
            prompt = [*asked.prompt, *beam.tokens]
            member = _member(asked, next(self._names), self._family, prompt, params)
            member.max_total = len(prompt) + 1
            if beam.parent is not None:
                member.page_keys = list(beam.parent.page_keys)
            self._asked.append(member)
            self.members[member.request_id] = member
            self._places[member.request_id] = place
            yield member

    def _step(self) -> bool:
        """From the running beams' continuations to the next ones; False where the search ends."""
        params, width = self.request.params, self._width
        length = len(self._running[0].tokens) + 1
        last = length == self._room
        grown = []
        for place, beam in enumerate(self._running):
            found = self._continuations.pop(place)
            for rank, (token, logprob) in enumerate(zip(found.top_ids[0].tolist(), found.top[0].tolist(), strict=True)):
                grown.append((beam.total + logprob, beam, token, logprob, rank + 1, self._asked[place]))
        grown.sort(key=lambda one: -one[0])
        grown = grown[: self.candidates(width, len(self.request.stop_ids))]
        self._running = []
        for place, (total, beam, token, logprob, rank, parent) in enumerate(grown):
            new = _Beam((*beam.tokens, token), (*beam.logprobs, logprob), (*beam.ranks, rank), total, parent)
            if not last and token not in self.request.stop_ids:
                if len(self._running) < width:
                    self._running.append(new)
            elif place < width:  # those behind are there to go on, and not to end
                self._finished.append((total / length**params.length_penalty, new))
        self._finished.sort(key=lambda one: -one[0])
        del self._finished[width:]
        if not self._running:
            return False
        if len(self._finished) < width:
            return True
        if params.early_stopping is True:
            return False
        # How good the best running beam can become: at its length, or at full length where that is kinder to it.
        at_most = self._room if params.early_stopping == "never" and params.length_penalty > 0 else length
        return self._running[0].total / at_most**params.length_penalty > self._finished[-1][0]

    def _answer(self, delta: Delta, reason: FinishReason | None) -> Iterator[Delta]:
        """The last deltas of the n samples. reason: why the search ended before its end, with what it had found."""
        first = self._first
        assert first is not None
        best = [beam for _, beam in self._finished] + (self._running if reason is not None else [])
        n = self.request.params.n
        for index, beam in enumerate((best + [_Beam()] * n)[:n]):
            stopped = bool(beam.tokens) and beam.tokens[-1] in self.request.stop_ids
            yield dataclasses.replace(
                delta,
                request_id=self.request.request_id,
                token_ids=list(beam.tokens),
                logprobs=Logprobs(
                    np.asarray(beam.logprobs, np.float32),
                    np.asarray(beam.ranks, np.int32),
                    np.zeros((len(beam.tokens), 0), np.int32),
                    np.zeros((len(beam.tokens), 0), np.float32),
                ),
                prompt_logprobs=first.prompt_logprobs if index == 0 else None,
                finish=reason or (FinishReason.STOP if stopped else FinishReason.LENGTH),
                stop_token=beam.tokens[-1] if stopped else None,
                num_prompt=len(self.request.source) + len(self.request.prompt),
                num_output=len(beam.tokens),
                num_cached=first.num_cached,
                first_scheduled=first.first_scheduled,
                index=index,
                more=index + 1 < n,
            )


def _member(asked: Request, number: int, family: Family, prompt: list[int], params: SamplingParams) -> Request:
    return Request(
        request_id=f"{asked.request_id}{OF_A_GROUP}{number}",
        prompt=prompt,
        params=params,
        stop_ids=(),
        max_total=0,
        seed=asked.seed,
        priority=asked.priority,
        arrival=asked.arrival,
        deadline=asked.deadline,
        cache_salt=asked.cache_salt,
        source=asked.source,
        family=family,
    )
