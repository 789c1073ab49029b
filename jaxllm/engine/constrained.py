"""Answers that have to fit a grammar: what follows from a draw, and the masks of the draws to come."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor

from jaxllm.constraints.constraint import ALLOWANCE, Matching, fill_together
from jaxllm.core import Constraint, FinishReason, Request, Row
from jaxllm.engine.stop import accept
from jaxllm.errors import ConstraintError

LEAST_JUMP = 4
"""Tokens that have to follow, from which on they are computed as a chunk, and not drawn one by one: a chunk takes two
steps, as the draw in flight is lost."""


class Advance(NamedTuple):
    """What a request has now: new tokens, why it ends with the last of them, and what went wrong if something did."""

    tokens: list[int]
    finish: FinishReason | None
    error: str | None = None


def advance(request: Request, drawn: list[int]) -> Advance:
    """How a constrained request goes on by its drawn tokens.

    Where several tokens have to follow, they follow at once: nobody needs to draw them. Not where the log probability
    of each is asked for. Whatever a constraint raises is the end of its own request alone.
    """
    constraint = request.constraint
    assert constraint is not None
    tokens, finish = accept(request, drawn)
    try:
        end = _walk(constraint, tokens, 0)
        if end is None and finish is None and request.params.logprobs is None:
            forced = constraint.forced()
            if len(forced) >= LEAST_JUMP:
                tokens, finish = accept(request, tokens + forced)
                end = _walk(constraint, tokens, len(drawn))
    except Exception as error:
        return Advance([], FinishReason.ERROR, _text(error))
    return Advance(tokens, finish) if end is None else Advance(tokens[:end], FinishReason.STOP)


def _walk(constraint: Constraint, tokens: list[int], start: int) -> int | None:
    """Goes on by tokens[start:]. How many tokens there are where nothing may follow any more; None if something may."""
    for count in range(start, len(tokens)):
        if not constraint.accept(tokens[count]):
            return count + 1
    return None


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ConstraintError) else f"structured_outputs: {type(error).__name__}: {error}"


class Masks:
    """Fills the masks of a step's rows, several at a time where constraints let go of the interpreter's lock.

    The array is the same each time: a step is collected, and so has read it, before the next one's is filled.
    """

    THREADS = max(1, min(16, os.cpu_count() or 1))
    SHARE = 2
    """Rows that are worth handing to another thread."""
    TRUST = 32
    """Steps that nobody looks into after one that took long through no constraint's fault."""

    def __init__(self, max_rows: int, vocab_size: int):
        self._shape = (max_rows, -(-vocab_size // 32))
        self._used = 0  # rows that may forbid something
        # Whether rows are filled one by one, each with its time told, to charge who takes long: after a step that did,
        # for as long as somebody is overdrawn. That takes longer than together, which says nothing about anyone.
        self._apart = False
        self._trusted = 0  # steps to come

    @cached_property
    def _masks(self) -> np.ndarray:
        return np.full(self._shape, -1, np.int32)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.THREADS, "masks")

    @cached_property
    def _executor(self) -> LLExecutor:
        return LLExecutor(self.THREADS)

    def fill(self, rows: Sequence[Row]) -> tuple[np.ndarray | None, list[tuple[Request, str]]]:
        """Masks [max_rows, W] of a plan's rows, the step before it being committed, or None if nothing is forbidden;
        and the requests that cannot go on, with the reasons.

        What a row draws does not matter if its request has ended, or if its next tokens are known already.
        """
        wanted = {
            i: row.request for i, row in enumerate(rows)
            if row.draws and row.request.constraint is not None and row.request.finish is None
            and not row.request.num_foretold
        }  # fmt: skip
        if not wanted:
            return None, []
        masks, began = self._masks, time.perf_counter()
        masks[: self._used] = -1
        self._used = max(wanted) + 1
        together: list[tuple[int, Matching]] = []
        for i, request in wanted.items():
            constraint = request.constraint
            if not self._apart and isinstance(constraint, Matching):
                together.append((i, constraint))
        failed = fill_together(self._executor, masks, together) if together else []
        failed += self._each(masks, [(i, wanted[i]) for i in wanted.keys() - dict(together).keys()])
        self._look_into(list(wanted.values()), time.perf_counter() - began)
        empty = set(wanted) - {i for i, _ in failed} - set(np.flatnonzero(masks[: self._used].any(axis=1)).tolist())
        nothing = ConstraintError("structured_outputs: the grammar allows no token of this model here; change it")
        failed += [(i, nothing) for i in empty]
        for i, _ in failed:
            masks[i] = -1
        return masks, [(wanted[i], _text(error)) for i, error in failed]

    def _look_into(self, requests: list[Request], seconds: float) -> None:
        """Decides how the next step is filled, after one of `requests` that took so long."""
        if self._apart:
            constraints = [request.constraint for request in requests]
            self._apart = any(isinstance(it, Matching) and it.overdrawn for it in constraints)
            self._trusted = 0 if self._apart else self.TRUST
        elif self._trusted:
            self._trusted -= 1
        else:
            self._apart = seconds > ALLOWANCE

    def _each(self, masks: np.ndarray, wanted: list[tuple[int, Request]]) -> list[tuple[int, Exception]]:
        helpers = min(self.THREADS, -(-len(wanted) // self.SHARE)) - 1
        rest = iter(wanted)  # whoever is done takes the next row: some take a hundred times as long as others
        futures = [self._pool.submit(_fill, masks, rest) for _ in range(helpers)]
        failed = _fill(masks, rest)
        for future in futures:
            failed += future.result()
        return failed


def _fill(masks: np.ndarray, wanted: Iterator[tuple[int, Request]]) -> list[tuple[int, Exception]]:
    failed: list[tuple[int, Exception]] = []
    for i, request in wanted:
        assert request.constraint is not None
        try:
            request.constraint.fill(masks[i])
        except Exception as error:
            failed.append((i, error))
    return failed
