"""Arguments written as text between tags: what each means follows from the tool's JSON schema."""

import json
from typing import Any

from jaxllm.server.text.reading import BrokenError, Course
from jaxllm.server.text.tools.literals import python_to_json
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.schemas import property_of, schema_types
from jaxllm.server.tool_choice import is_name


class TypedParser(ToolParser):
    """A string is streamed as it comes; any other value is read to its end and becomes JSON then."""

    def begin_typed(self, name: str) -> None:
        if not is_name(name):
            raise BrokenError(name)
        self.begin(name)
        self.arguments("{")
        self._num_arguments = 0
        self._parameters = self.functions.get(name, {}).get("parameters") or {}

    def argument(self, key: str, *ends: str, types: set[str] | None = None) -> Course[str]:
        """One argument's value, up to one of `ends`, which is taken and returned. types: what it may be, in place of
        what the tool's schema says."""
        self.arguments((", " if self._num_arguments else "") + _quoted(key) + ": ")
        self._num_arguments += 1
        if types is None:
            types = schema_types(self._parameters, property_of(self._parameters, key))
        if types == {"string"}:
            self.arguments('"')
            ended = yield from self.until(lambda text: self.arguments(_quoted(text)[1:-1]), *ends)
            if not ended:
                raise BrokenError("the end")
            self.arguments('"')
        else:
            pieces = list[str]()
            ended = yield from self.until(pieces.append, *ends)
            text = "".join(pieces)
            if not ended:
                self.arguments(_quoted(text)[:-1])
                raise BrokenError("the end")
            self.arguments(_as_json(text, types))
        return ended

    def end_typed(self) -> None:
        self.arguments("}")
        self.end()


def _as_json(text: str, types: set[str]) -> str:
    """The value as JSON: of one of the types where it can be, else a string."""
    word = text.strip()
    if "boolean" in types and word.lower() in ("true", "false"):
        return word.lower()
    if "null" in types and word.lower() in ("null", "none"):
        return "null"
    if types - {"string", "null"} or not types:
        try:
            value = json.loads(word, parse_constant=_refuse)
        except (ValueError, RecursionError):
            value = text
        if not isinstance(value, str):
            return word
        if types & {"object", "array"} and "string" not in types:  # as Python writes them, now and then
            return python_to_json(word) or _quoted(text)
    return _quoted(text)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
