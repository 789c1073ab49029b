"""Thinking comes before the answer that has to fit a grammar, and is free."""

from collections.abc import Callable, Sequence

import numpy as np
from llguidance import LLMatcher

from jaxllm.constraints.constraint import Grammar, clear_bits, set_bits
from jaxllm.constraints.vocabulary import TokenTable

MAX_GAP = 4


class ThinkingMarks:
    """What begins and ends thinking, in one vocabulary.

    starts: an answer that begins with none of these, each a token, does not think; without any it thinks from its
    beginning on. ends: texts; the first of them to come ends thinking.
    """

    def __init__(self, table: TokenTable, starts: Sequence[str], ends: Sequence[str]):
        self.table = table
        begin = {start.encode() for start in starts}
        self.starts = frozenset(token for token, text in enumerate(table.tokens) if text in begin)
        self.asked_for_starts = bool(starts)
        self.ends = tuple(end.encode() for end in ends)
        self.keep = max(map(len, self.ends)) - 1
        free = np.zeros(-(-len(table.tokens) // 32) * 32, bool)
        free[_ids(table, bool)] = True
        self.free = np.packbits(free, bitorder="little").view(np.int32)  # every token there is
        self.space = frozenset(_ids(table, lambda text: text.isspace()).tolist())
        self._straddling: dict[tuple[bytes, int], np.ndarray] = {}

    def straddling(self, tail: bytes) -> list[np.ndarray]:
        """Tokens that would end thinking behind this text and begin the answer at once: no mask is for such."""
        found = []
        for end in self.ends:
            for length in range(len(end)):
                if tail.endswith(end[:length]):
                    key = (end, length)
                    if key not in self._straddling:
                        self._straddling[key] = self._find(end, length)
                    found.append(self._straddling[key])
        return found

    def _find(self, end: bytes, length: int) -> np.ndarray:
        """Those that hold the rest of an end, at their beginning if it has begun, and more than space behind it."""
        rest = end[length:]

        def straddles(text: bytes) -> bool:
            at = text.find(rest)
            return (at == 0 or (at > 0 and length == 0)) and bool(text[at + len(rest) :].strip())

        return _ids(self.table, straddles)

    def ended(self, text: bytes) -> bool:
        return any(end in text for end in self.ends)


class AfterThinking:
    """jaxllm.core.Constraint: free until thinking ends, and then as the grammar has it. Nothing ends the request
    while it thinks. White space may stand behind the end, as models write it."""

    def __init__(self, grammar: Grammar, marks: ThinkingMarks):
        self._grammar = grammar
        self._marks = marks
        self._undecided = marks.asked_for_starts  # the first token tells
        self._thinking = not marks.asked_for_starts
        self._gap = 0  # tokens of white space that may still come between the end of thinking and the answer
        self._tail = b""

    def fill(self, mask: np.ndarray) -> None:
        if self.begin(mask) is not None:
            self._grammar.fill(mask)
            self._add(mask)

    def begin(self, mask: np.ndarray) -> LLMatcher | None:
        if not self._thinking:
            return self._grammar.begin(mask)
        mask[:] = self._marks.free
        words = mask.view(np.uint32)
        clear_bits(words, self._grammar.ending)
        for tokens in self._marks.straddling(self._tail):
            clear_bits(words, tokens)
        return None

    def end(self, mask: np.ndarray) -> None:
        self._grammar.end(mask)
        self._add(mask)

    def _add(self, mask: np.ndarray) -> None:
        """What may come between thinking and the answer, beside what begins it."""
        if self._undecided or self._gap:
            set_bits(mask.view(np.uint32), self._marks.starts if self._undecided else self._marks.space)

    def accept(self, token: int) -> bool:
        undecided, gap = self._undecided, self._gap
        self._undecided, self._gap = False, 0
        if undecided and token in self._marks.starts:
            self._thinking = True
            return True
        if self._thinking:
            text = self._tail + self._marks.table.tokens[token]
            self._tail = text[-self._marks.keep :] if self._marks.keep else b""
            if self._marks.ended(text):
                self._thinking, self._gap = False, MAX_GAP
            return True
        if gap and token in self._marks.space and not self._grammar.allows(token):
            self._gap = gap - 1
            return True
        return self._grammar.accept(token)

    def forced(self) -> list[int]:
        return [] if self._undecided or self._thinking or self._gap else self._grammar.forced()

    @property
    def overdrawn(self) -> bool:
        return self._grammar.overdrawn

    def fork(self) -> "AfterThinking":
        copy = AfterThinking(self._grammar.fork(), self._marks)
        copy._undecided, copy._thinking, copy._gap = self._undecided, self._thinking, self._gap
        copy._tail = self._tail
        return copy


def _ids(table: TokenTable, matches: Callable[[bytes], bool]) -> np.ndarray:
    return np.array([token for token, text in enumerate(table.tokens) if matches(text)], np.int64)
