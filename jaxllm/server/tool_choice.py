"""What may be called, and what `tool_choice` asks of an answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.errors import RequestError

MAX_NAME = 256
"""Characters of a function's name at most: what is longer is no name."""


def is_name(name: str) -> bool:
    """Whether a function may have this name. (Halves of characters, which JSON can write, are not printable.)"""
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def is_text(text: str) -> bool:
    """Whether this can be sent: JSON's escapes can make halves of characters, which no encoding has."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_tools(tools: Sequence[Any]) -> None:
    """Raises RequestError unless these are functions as OpenAI describes them, each of its own name."""
    names = set()
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise RequestError(f"tools[{i}]: must be {{'type': 'function', 'function': {{'name': ...}}}}", "tools")
        function = tool.get("function")
        function = function if isinstance(function, Mapping) else {}
        name = function.get("name")
        if not isinstance(name, str) or not is_name(name):
            raise RequestError(f"tools[{i}].function.name={name!r}: must be a short name", "tools")
        if name in names:
            raise RequestError(f"tools[{i}]: there are two functions of the name {name!r}", "tools")
        names.add(name)
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise RequestError(f"tools[{i}].function.parameters: must be a JSON schema", "tools")


def calls_schema(tools: Sequence[Mapping[str, Any]], function: str | None, parallel: bool) -> dict[str, Any]:
    """The JSON schema of an answer that has to call tools: [{"name": ..., "parameters": {...}}, ...].

    function: the one that has to be called, once; None leaves the choice among all. parallel: several calls at once.
    """
    functions = [tool["function"] for tool in tools if function in (None, tool["function"]["name"])]
    if not functions:
        raise RequestError(
            f"tool_choice names {function!r}, which is none of the tools" if function else "tool_choice without tools",
            "tool_choice",
        )
    calls = []
    for i, each in enumerate(functions):
        parameters = _moved(each.get("parameters") or {"type": "object"}, f"#/items/anyOf/{i}/properties/parameters")
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": each["name"]}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
    return schema if parallel and function is None else schema | {"maxItems": 1}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself hold where it stands at `place` of another."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    if isinstance(reference := moved.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved
