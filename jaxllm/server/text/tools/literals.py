"""Python literals become JSON as they come."""

import json
import re
from collections.abc import Callable

from jaxllm.server.text.reading import BrokenError, Course, Reader

MAX_DEPTH = 64

_WORD_RUN = re.compile(r"[\w.+\-]+")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][+-]?\d+)?")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {
    "n": "\\n",
    "t": "\\t",
    "r": "\\r",
    "b": "\\b",
    "f": "\\f",
    "\\": "\\\\",
    '"': '\\"',
    "'": "'",
    "0": "\\u0000",
}
_ESCAPES |= {"a": "\\u0007", "v": "\\u000b", "\n": ""}
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}
_STRING_RUNS = {quote: re.compile(f"[^{quote}\\\\]+") for quote in "\"'"}


class LiteralReader(Reader):
    """A part of parsers: reads strings, numbers, True, False, None, lists, tuples and dictionaries."""

    def python_value(self, sink: Callable[[str], None], depth: int = 0) -> Course[None]:
        """Stream a value as JSON. BrokenError where it is none of the above."""
        character = yield from self.skip_space()
        if depth > MAX_DEPTH or not character:
            raise BrokenError("no value")
        if character in "\"'":
            yield from self.python_string(sink)
        elif character in "[(":
            yield from self._sequence(sink, depth, "]" if character == "[" else ")")
        elif character == "{":
            yield from self._dictionary(sink, depth)
        else:
            sink((yield from self._word()))

    def python_string(self, sink: Callable[[str], None]) -> Course[None]:
        """A string in either kind of quotes, single or triple."""
        quote = self.take()
        if (yield from self.follows(quote * 2)):
            self.take(2)
            quote *= 3
        elif (yield from self.peek()) == quote:
            self.take()
            sink('""')
            return
        sink('"')
        while not (yield from self.follows(quote)):
            character = yield from self.peek()
            if not character:
                raise BrokenError("the end")
            if character == "\\":
                sink((yield from self._escape()))
            elif character == quote[0]:
                sink(json.dumps(self.take())[1:-1])
            else:
                sink(json.dumps(self.take_run(_STRING_RUNS[quote[0]]), ensure_ascii=False)[1:-1])
        self.take(len(quote))
        sink('"')

    def _escape(self) -> Course[str]:
        self.take()
        kind = yield from self.peek()
        if not kind:
            raise BrokenError("the end")
        self.take()
        if kind not in _HEXADECIMAL:
            return _ESCAPES[kind] if kind in _ESCAPES else "\\\\" + json.dumps(kind, ensure_ascii=False)[1:-1]
        digits = ""
        while len(digits) < _HEXADECIMAL[kind]:
            if (yield from self.peek()) not in tuple("0123456789abcdefABCDEF"):
                return f"\\\\{kind}{digits}"
            digits += self.take()
        code = int(digits, 16)
        # Halves of characters stay escapes: no encoding has them.
        return json.dumps(chr(code))[1:-1] if code <= 0x10FFFF else f"\\\\{kind}{digits}"

    def _sequence(self, sink: Callable[[str], None], depth: int, end: str) -> Course[None]:
        self.take()
        sink("[")
        separator = ""
        while not (yield from self.skip(end)):
            sink(separator)
            yield from self.python_value(sink, depth + 1)
            separator = ", "
            if not (yield from self.skip(",")):
                yield from self.expect(end)
                break
        sink("]")

    def _dictionary(self, sink: Callable[[str], None], depth: int) -> Course[None]:
        self.take()
        sink("{")
        separator = ""
        while not (yield from self.skip("}")):
            sink(separator)
            if (yield from self.peek()) in ("'", '"'):
                yield from self.python_string(sink)
            else:  # JSON's keys are strings
                sink(f'"{(yield from self._word())}"')
            yield from self.expect(":")
            sink(": ")
            yield from self.python_value(sink, depth + 1)
            separator = ", "
            if not (yield from self.skip(",")):
                yield from self.expect("}")
                break
        sink("}")

    def _word(self) -> Course[str]:
        """A number or a constant, as JSON."""
        word = ""
        while (character := (yield from self.peek())) and _WORD_RUN.match(character):
            word += self.take_run(_WORD_RUN)
        if word in _WORDS:
            return _WORDS[word]
        if not (word.isascii() and _NUMBER.fullmatch(word)):
            raise BrokenError(word)
        try:
            whole = word.lstrip("+-").replace("_", "").isdigit()
            return json.dumps(int(word) if whole else float(word), allow_nan=False)
        except ValueError as error:  # 1_, or 1e999
            raise BrokenError(word) from error


def python_to_json(text: str) -> str | None:
    """A whole literal; None where it is none."""
    literal = _Whole()
    literal.feed(text, final=True)
    return literal.json


class _Whole(LiteralReader):
    json: str | None = None

    def read(self) -> Course[None]:
        pieces: list[str] = []
        try:
            yield from self.python_value(pieces.append)
            if not (yield from self.skip_space()):
                self.json = "".join(pieces)
        except BrokenError:
            pass
