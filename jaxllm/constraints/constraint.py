"""One sequence's place in its grammar, and the masks of many at once."""

import time
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from llguidance import LLExecutor, LLMatcher

from jaxllm.errors import ConstraintError

ALLOWANCE = 0.005
OVERDRAFT = 0.25
"""Seconds of the processor that a call may cost in the long run, and by how much a constraint may go beyond that."""
MOST = 0.1
"""Seconds that one call is charged at most: clocks run on where a machine stands still, which no grammar is to blame
for. Grammars that cost too much do so call after call."""


@runtime_checkable
class Matching(Protocol):
    """A constraint whose matcher may fill its mask beside others', between two calls."""

    def begin(self, mask: np.ndarray) -> LLMatcher | None:
        """What is to fill the mask before `end` is called; None where nothing is left to do."""

    def end(self, mask: np.ndarray) -> None:
        """Raises ConstraintError as `fill` does."""

    @property
    def overdrawn(self) -> bool:
        """It has taken longer than it may in the long run, as far as that was told of it."""


def fill_together(
    executor: LLExecutor, masks: np.ndarray, wanted: Sequence[tuple[int, Matching]]
) -> list[tuple[int, Exception]]:
    """Fills rows of masks [R, W] int32 on the executor's threads, without the interpreter's lock: handing it from row
    to row takes as long as filling. Returns the rows that cannot go on, with the reasons."""
    begun = [(i, constraint, constraint.begin(masks[i])) for i, constraint in wanted]
    matchers = [(matcher, i) for i, _, matcher in begun if matcher is not None]
    if matchers:  # none where all of them think, for one
        executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.shape[1] * masks.itemsize, masks.shape[0])
    failed: list[tuple[int, Exception]] = []
    for i, constraint, matcher in begun:
        if matcher is not None:
            try:
                constraint.end(masks[i])
            except Exception as error:
                failed.append((i, error))
    return failed


class Grammar:
    """jaxllm.core.Constraint over a matcher of llguidance's."""

    def __init__(self, matcher: LLMatcher, eos_token_id: int, end_ids: Sequence[int], stop_ids: Sequence[int]):
        """matcher: this constraint's own. eos_token_id: what it takes for the end of a text.

        end_ids: the model's end-of-text ids. stop_ids: those that end the request.
        """
        self._matcher = matcher
        self._eos = eos_token_id
        self._ends = end_ids
        self._stops = stop_ids
        self._not_ends = [(token >> 5, ~np.uint32(1 << (token & 31))) for token in {eos_token_id, *end_ids}]
        self._overdrawn = 0.0

    def fill(self, mask: np.ndarray) -> None:
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._spend(time.thread_time() - began)
        self.end(mask)

    def begin(self, mask: np.ndarray) -> LLMatcher | None:
        return self._matcher

    def end(self, mask: np.ndarray) -> None:
        if self._matcher.is_error():
            raise self._failed()
        words = mask.view(np.uint32)
        may_end = int(words[self._eos >> 5]) >> (self._eos & 31) & 1
        for word, kept in self._not_ends:
            words[word] &= kept
        if may_end:
            set_bits(words, self._stops)

    def accept(self, token: int) -> bool:
        matcher = self._matcher
        if (token in self._stops or token in self._ends) and matcher.is_accepting():
            return False
        began = time.perf_counter()  # no thread's own clock, which takes as long as the call
        if not matcher.consume_token(token):
            raise self._failed()
        self._spend(time.perf_counter() - began)
        return not matcher.is_stopped()

    def allows(self, token: int) -> bool:
        """Whether it may be drawn now, as part of the answer."""
        return self._matcher.validate_tokens([token]) == 1

    @property
    def ending(self) -> tuple[int, ...]:
        """Every token that ends the request, or a text."""
        return (self._eos, *self._ends, *self._stops)

    def forced(self) -> list[int]:
        return self._matcher.compute_ff_tokens()

    @property
    def overdrawn(self) -> bool:
        return self._overdrawn > 0

    def fork(self) -> "Grammar":
        return Grammar(self._matcher.deep_copy(), self._eos, self._ends, self._stops)

    def _spend(self, seconds: float) -> None:
        """Others wait meanwhile. Ambiguous grammars cost more with each token, within llguidance's limits."""
        self._overdrawn = max(0.0, self._overdrawn + min(seconds, MOST) - ALLOWANCE)
        if self._overdrawn > OVERDRAFT:
            raise ConstraintError(
                "structured_outputs: the grammar costs too much time for each token: make it less ambiguous"
            )

    def _failed(self) -> ConstraintError:
        why = self._matcher.get_error().partition("\n")[0] or "the token that was drawn does not fit it"
        return ConstraintError(
            f"structured_outputs: the answer cannot go on within its grammar ({why}); a simpler grammar or fewer other "
            "limits on tokens, may help"
        )


def set_bits(words: np.ndarray, tokens: Iterable[int]) -> None:
    """words: [ceil(V / 32)] uint32"""
    for token in tokens:
        words[token >> 5] |= np.uint32(1 << (token & 31))


def clear_bits(words: np.ndarray, tokens: Iterable[int] | np.ndarray) -> None:
    """words: [ceil(V / 32)] uint32"""
    for token in tokens:
        words[token >> 5] &= np.uint32(~(1 << (int(token) & 31)) & 0xFFFFFFFF)
