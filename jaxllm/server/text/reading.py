"""Reading an answer while it is being written: what parsers of tool calls and of reasoning stand on.

A parser is straight-line code over text that comes in pieces: a generator that yields whenever what it needs to
see has not come yet. Its decisions rest on the text alone, never on where it was cut, so that the pieces it gives
out join to what it would have made of the whole.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cache

type Course[T] = Generator[None, None, T]
"""A part of a parser: yields when it needs more text, returns what it has read."""

_SPACE = re.compile(r"\s*")


@dataclass(slots=True)
class CallDelta:
    """What is new of one tool call. The first of a call has its id and name, each a part of the arguments' JSON."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Parsed:
    """What a piece of an answer adds to its content, its reasoning and its tool calls."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class _Output:
    """A Parsed in the making: strings are joined once, whatever the number of their pieces."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[tuple[CallDelta, list[str]]] = []

    def begin_call(self, index: int, call_id: str, name: str) -> None:
        self.calls.append((CallDelta(index, call_id, name), []))

    def add_arguments(self, index: int, text: str) -> None:
        if not (self.calls and self.calls[-1][0].index == index):
            self.calls.append((CallDelta(index), []))
        self.calls[-1][1].append(text)

    def parsed(self) -> Parsed:
        for delta, arguments in self.calls:
            delta.arguments = "".join(arguments)
        return Parsed("".join(self.content), "".join(self.reasoning), [delta for delta, _ in self.calls])


class BrokenError(Exception):
    """The text is not what its format says; it stays text."""


class Reader:
    """Text comes in with `feed`; `read`, which a subclass writes, takes it and adds to `out`.

    Attributes:
        special_tokens: special tokens that the format is made of; without them in the text nothing is found.
        may_reason: what is still to come may be reasoning.
        reasons: what is being read is reasoning.
    """

    special_tokens: Sequence[str] = ()
    may_reason = False
    reasons = False

    def __init__(self) -> None:
        self.out = _Output()
        self._text = ""
        self._at = 0
        self._final = False
        self._course = self.read()

    def feed(self, text: str, final: bool = False) -> Parsed:
        """Take the next piece; return what it adds. final: nothing follows."""
        self._text = self._text[self._at :] + text
        self._at = 0
        self._final = final
        next(self._course, None)
        out, self.out = self.out, _Output()
        return out.parsed()

    def read(self) -> Course[None]:
        """The whole answer, to its end."""
        raise NotImplementedError

    # --- what a course is made of ---

    def took(self, text: str) -> None:
        """Told of all text that is read and not streamed, in order."""

    def peek(self) -> Course[str]:
        """The next character, not taken; "" at the end."""
        while self._at == len(self._text):
            if self._final:
                return ""
            yield
        return self._text[self._at]

    def take(self, count: int = 1) -> str:
        """Take characters that `peek` or `follows` has seen."""
        text = self._text[self._at : self._at + count]
        self._at += count
        self.took(text)
        return text

    def take_run(self, pattern: "re.Pattern[str]") -> str:
        """Take what has come of a run of characters that each match the pattern (a repeated class)."""
        match = pattern.match(self._text, self._at)
        assert match is not None
        return self.take(match.end() - self._at)

    def follows(self, literal: str) -> Course[bool]:
        """Whether the text goes on with this."""
        while len(self._text) - self._at < len(literal) and literal.startswith(self._text[self._at :]):
            if self._final:
                return False
            yield
        return self._text.startswith(literal, self._at)

    def skip_space(self) -> Course[str]:
        """Take white space; the character behind it, not taken."""
        while character := (yield from self.peek()):
            if not character.isspace():
                return character
            self.take_run(_SPACE)
        return ""

    def skip(self, literal: str) -> Course[bool]:
        """Take white space, and this if it follows."""
        yield from self.skip_space()
        found = yield from self.follows(literal)
        if found:
            self.take(len(literal))
        return found

    def expect(self, literal: str) -> Course[None]:
        if not (yield from self.skip(literal)):
            raise BrokenError(literal)

    def until(self, sink: Callable[[str], None], *marks: str) -> Course[str]:
        """Stream the text before the first of these marks into `sink`; the mark, taken, or "" at the end."""
        while True:
            found, end = self._find(marks)
            if end > self._at:
                sink(self._text[self._at : end])
                self._at = end
            if found or self._final:
                return self.take(len(found))
            yield

    def text_until(self, *marks: str, limit: int | None = None) -> Course[tuple[str, str]]:
        """Take the text before the first of these marks, and the mark. BrokenError at the end, or behind the limit."""
        text = ""
        while True:
            found, end = self._find(marks, None if limit is None else limit - len(text) + 1)
            if limit is not None and len(text) + end - self._at > limit:
                self.take(limit - len(text))
                raise BrokenError(f"none of {marks} within {limit} characters")
            text += self.take(end - self._at)
            if found:
                return text, self.take(len(found))
            if self._final:
                raise BrokenError(f"none of {marks}")
            yield

    def _find(self, marks: tuple[str, ...], span: int | None = None) -> tuple[str, int]:
        """The first mark in what has come, and where it begins; else "" and the end of what cannot begin one.

        span: how many characters further a mark may begin to be of use.
        """
        pattern, beginnings = _search(marks)
        last = len(self._text) if span is None else self._at + span + max(map(len, marks))
        if found := pattern.search(self._text, self._at, last):
            return found.group(), found.start()
        end = len(self._text)
        if not self._final:
            for start in range(max(self._at, end - max(map(len, marks)) + 1), end):
                if self._text[start] in beginnings and any(mark.startswith(self._text[start:]) for mark in marks):
                    return "", start
        return "", end


@cache
def _search(marks: tuple[str, ...]) -> tuple["re.Pattern[str]", frozenset[str]]:
    """A pattern that finds the first of these marks, and the characters that they begin with."""
    # A mark inside another would be found or not by where the text was cut; at its end both are found at once.
    assert not any(one != other and one in other[:-1] for one in marks for other in marks), marks
    return re.compile("|".join(re.escape(mark) for mark in marks)), frozenset(mark[0] for mark in marks)
