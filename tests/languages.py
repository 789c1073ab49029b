"""Small languages over token ids, as constraints: automata written out by hand."""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from jaxllm.errors import ConstraintError

LONGEST_RUN = 9
"""Forced tokens told of at once, as some languages force them for ever."""


class Language:
    """jaxllm.core.Constraint.

    edges: of each state the tokens that may follow, and the states behind them; a text begins in the first state and
    ends where nothing may follow. fuel: masks that may be asked for; None is any number.
    """

    def __init__(self, edges: Sequence[Mapping[int, int]], fuel: int | None = None, state: int = 0):
        self.edges = edges
        self.fuel = fuel
        self.state = state

    @property
    def allowed(self) -> list[int]:
        return sorted(self.edges[self.state])

    def fill(self, mask: np.ndarray) -> None:
        if self.fuel is not None:
            if self.fuel == 0:
                raise ConstraintError("out of fuel")
            self.fuel -= 1
        mask[:] = 0
        for token in self.allowed:
            mask[token // 32] |= np.uint32(1 << token % 32).astype(np.int32)

    def accept(self, token: int) -> bool:
        if token not in self.edges[self.state]:
            raise ConstraintError(f"{token} is none of {self.allowed}")
        self.state = self.edges[self.state][token]
        return bool(self.edges[self.state])

    def forced(self) -> list[int]:
        run: list[int] = []
        state = self.state
        while len(self.edges[state]) == 1 and len(run) < LONGEST_RUN:
            ((token, state),) = self.edges[state].items()
            run.append(token)
        return run

    def fork(self) -> Self:
        return type(self)(self.edges, self.fuel, self.state)

    def speaks(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens begin a text of the language, or are one."""
        text = self.fork()
        return all(text.accept(token) or i + 1 == len(tokens) for i, token in enumerate(tokens))


def choices(*words: Sequence[int]) -> Language:
    """The language of these words, none of which begins another."""
    edges: list[dict[int, int]] = [{}]
    for word in words:
        state = 0
        for token in word:
            if token not in edges[state]:
                edges[state][token] = len(edges)
                edges.append({})
            state = edges[state][token]
    return Language(edges)
