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


def chosen_tools(tools: Sequence[dict[str, Any]], function: str | None) -> list[dict[str, Any]]:
    """The tools of which one has to be called: the function of this name, or any where None is named."""
    chosen = [tool for tool in tools if function in (None, tool["function"]["name"])]
    if not chosen:
        unknown = f"tool_choice names {function!r}, which is none of the tools"
        raise RequestError("tool_choice without tools" if function is None else unknown, "tool_choice")
    return chosen
