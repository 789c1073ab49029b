"""What the parsers of tool calls share: where content ends and calls begin, and calls written in JSON."""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.server.text.reading import BrokenError, Course, Reader
from jaxllm.server.text.tools.written import Format, Function
from jaxllm.server.tool_choice import is_name, is_text

_NAME_RUN = re.compile(r"[\w.\-]+")
_STRING_RUN = re.compile(r'[^"\\]+')
_PLAIN_RUN = re.compile(r"[\s\w.+\-,:]+")
_SCALAR_RUN = re.compile(r"[\w.+\-]+")
_ESCAPES = {code: json.dumps(chr(code))[1:-1] for code in range(32)}
_CLOSING = {"{": "}", "[": "]"}


class ToolParser(Reader):
    """Reads the text of an answer: what is no call is content, with the white space around calls left out.

    A subclass names the marks that begin calls and reads what follows one in `section`. Where that is not as the
    format says, all that no call was made of is content, and reading goes on behind it. A call whose arguments
    break off keeps what came of them.

    Attributes:
        openers: marks that begin calls.
        closers: marks that end them; they say nothing, and once there was a call they are left out.
    """

    openers: Sequence[str]
    closers: Sequence[str] = ()

    def __init__(self, tools: Sequence[Mapping[str, Any]]):
        """tools: what the model may call, as OpenAI has them: {"type": "function", "function": {...}}."""
        super().__init__()
        self.functions: dict[str, Mapping[str, Any]] = {tool["function"]["name"]: tool["function"] for tool in tools}
        self.num_calls = 0
        self._open = False
        self._raw: list[str] = []  # taken, and made nothing of yet
        self._space = ""  # white space that is content if text follows
        self._space_taken = False
        self._any_content = False
        self._behind_call = False

    def read(self) -> Course[None]:
        while mark := (yield from self.until(self._outside, *self.openers, *self.closers)):
            if mark in self.closers:
                if not self.num_calls:
                    self.content(mark)
                continue
            self._raw = [mark]
            try:
                yield from self.section(mark)
            except BrokenError:
                self.give_up()
        if not self._behind_call:
            self.out.content.append(self._space)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        """How calls of these functions are written, as a structural tag's format.

        several: more than one call. What it says is what `section` reads. Raises RequestError for arguments that the
        format cannot be made to hold.
        """
        raise NotImplementedError

    def section(self, opener: str) -> Course[None]:
        """One or more calls, behind their opener. BrokenError where the text is no such thing."""
        raise NotImplementedError

    def took(self, text: str) -> None:
        self._raw.append(text)

    def give_up(self) -> None:
        """What was made nothing of is content; but not the beginning of more of a call with which the answer ends."""
        if not (self._open and self._final and self._at == len(self._text)):
            self.content("".join(self._raw))
        self._open = False

    def _outside(self, text: str) -> None:
        """Content, unless it is the beginning of a closer with which the answer is cut off behind a call."""
        beginning = text.lstrip()
        cut_off = beginning and self._final and self._at + len(text) == len(self._text)
        if not (cut_off and self._behind_call and any(mark.startswith(beginning) for mark in self.closers)):
            self.content(text)

    # --- giving out ---

    def content(self, text: str) -> None:
        """White space waits for the text behind it. Of that on both sides of a call one is enough, or none at all."""
        if self._behind_call:
            bare = text.lstrip()
            if self._any_content and not self._space_taken:
                self._space += text[: len(text) - len(bare)]
            text = bare
        if stripped := text.rstrip():
            self.out.content.append(self._space + stripped)
            self._space = text[len(stripped) :]
            self._any_content = True
            self._behind_call = False
        else:
            self._space += text

    def begin(self, name: str, call_id: str = "") -> None:
        """A call's name is known; its arguments follow."""
        self._raw.clear()
        self._open = self._behind_call = True
        if not self._any_content:
            self._space = ""
        self._space_taken = bool(self._space)
        self.out.begin_call(self.num_calls, call_id or self.new_id(), name)
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """The next part of the arguments' JSON."""
        self._raw.clear()
        self.out.add_arguments(self.num_calls - 1, text)

    def end(self) -> None:
        """The arguments are whole; so is all of the call that was read."""
        self._open = False
        self._raw.clear()

    def new_id(self) -> str:
        return f"call_{uuid.uuid4().hex[:24]}"

    # --- what several formats have ---

    def name(self) -> Course[str]:
        """Take a name, with white space before it."""
        yield from self.skip_space()
        name = ""
        while (character := (yield from self.peek())) and _NAME_RUN.match(character):
            name += self.take_run(_NAME_RUN)
        if not is_name(name):
            raise BrokenError("no name")
        return name

    def json_object(self, name: str, call_id: str = "") -> Course[None]:
        """The call of this name whose arguments come next."""
        if (yield from self.skip_space()) != "{" or not is_name(name):
            raise BrokenError("no call")
        self.begin(name, call_id)
        yield from self.json_value(self.arguments)
        self.end()

    def json_calls(self) -> Course[None]:
        """[{"name": ..., "arguments": {...}}, ...], or one such object."""
        if (yield from self.skip_space()) == "{":
            yield from self.json_call()
            return
        yield from self.expect("[")
        while True:
            yield from self.json_call()
            if not (yield from self.skip(",")):
                break
        yield from self.expect("]")

    def json_call(self, *, opened: bool = False, bare: bool = False) -> Course[None]:
        """{"name": ..., "arguments" or "parameters": {...}}, in any order.

        opened: its brace is taken already.
        bare: no mark of the format's says that this is a call, so that it has to be one of the tools', and nothing
        else.
        """
        name, early, begun = "", list[str](), False
        if not opened:
            yield from self.expect("{")
        while True:
            key = yield from self.json_string()
            yield from self.expect(":")
            if key == "name":
                name = yield from self.json_string()
                if not is_name(name) or (bare and name not in self.functions):
                    raise BrokenError(name)
            elif key in ("arguments", "parameters") and not begun and not early:
                if name:
                    self.begin(name)
                    begun = True
                yield from self.json_arguments(self.arguments if begun else early.append)
                if begun:
                    self.end()
            elif bare and key not in ("type", "id"):
                raise BrokenError(key)
            else:
                yield from self.json_value(_ignore)
            if not (yield from self.skip(",")):
                break
        if not (begun or name):
            raise BrokenError("no name")
        yield from self.expect("}")
        if not begun:
            self.begin(name)
            self.arguments("".join(early) or "{}")
        self.end()

    def json_arguments(self, sink: Callable[[str], None]) -> Course[None]:
        """An object; or one written out as a string, or none."""
        following = yield from self.skip_space()
        if following == "{":
            yield from self.json_value(sink)
        elif following == '"':
            inner = yield from self.json_string()
            sink(inner if is_object(inner) else json.dumps(inner))
        else:
            text = list[str]()
            yield from self.json_value(text.append)
            value = "".join(text)
            sink("{}" if "null".startswith(value) else value)

    def json_value(self, sink: Callable[[str], None]) -> Course[None]:
        """Stream a JSON value, as it is written. Only brackets are checked; line breaks in strings become escapes."""
        expected: list[str] = []
        character = yield from self.skip_space()
        while True:
            if character == '"':
                yield from self._json_raw_string(sink)
            elif character in _CLOSING:
                expected.append(_CLOSING[character])
                sink(self.take())
            elif expected and character == expected[-1]:
                expected.pop()
                sink(self.take())
            elif expected and _PLAIN_RUN.match(character):
                sink(self.take_run(_PLAIN_RUN))
            elif character and _SCALAR_RUN.match(character):
                while character and _SCALAR_RUN.match(character):
                    sink(self.take_run(_SCALAR_RUN))
                    character = yield from self.peek()
            else:
                raise BrokenError("no JSON")
            if not expected:
                return
            character = yield from self.peek()

    def json_string(self) -> Course[str]:
        """Take a JSON string; what it means."""
        yield from self.skip_space()
        pieces: list[str] = []
        if (yield from self.peek()) != '"':
            raise BrokenError("no string")
        yield from self._json_raw_string(pieces.append)
        try:
            value = json.loads("".join(pieces), strict=False)
        except ValueError as error:
            raise BrokenError("no string") from error
        assert isinstance(value, str)
        return value

    def _json_raw_string(self, sink: Callable[[str], None]) -> Course[None]:
        sink(self.take())
        while (character := (yield from self.peek())) != '"':
            if character == "\\":
                self.take()
                if not (yield from self.peek()):
                    raise BrokenError("the end")
                sink(character + self.take())
            elif character:
                sink(self.take_run(_STRING_RUN).translate(_ESCAPES))
            else:
                raise BrokenError("the end")
        sink(self.take())


def is_word(name: str) -> bool:
    """Whether `ToolParser.name` reads all of this."""
    return is_name(name) and _NAME_RUN.fullmatch(name) is not None


def is_object(text: str) -> bool:
    """Whether this is a JSON object, and can be sent."""
    try:
        return isinstance(json.loads(text), dict) and is_text(text)
    except (ValueError, RecursionError):
        return False


def _ignore(text: str) -> None:
    pass
