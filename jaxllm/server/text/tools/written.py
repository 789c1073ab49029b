"""How models write calls, as formats of structural tags: what a grammar makes a model write that has to call a tool.

Each parser's class says what it reads in `ToolParser.written`, by means of these.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxllm.constraints.json_schema import constraining
from jaxllm.errors import RequestError
from jaxllm.server.text.tools.schemas import property_of, resolved, schema_types

Format = dict[str, Any]
Function = Mapping[str, Any]

_PLAIN = frozenset(("type", "title", "description", "default", "examples", "example", "deprecated", "$comment"))


def text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def either(formats: Sequence[Format]) -> Format:
    return formats[0] if len(formats) == 1 else {"type": "or", "elements": list(formats)}


def thought(begin: str, end: str) -> Format:
    """Thinking that may come first."""
    return {"type": "optional", "content": {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": end}}


def arguments_schema(function: Function) -> Mapping[str, Any]:
    """The JSON schema of a function's arguments, which are an object whether or not it says so."""
    parameters = function.get("parameters") or {}
    return parameters if "type" in parameters else {"type": "object", **parameters}


def calls(
    functions: Sequence[Function],
    several: bool,
    begin: Callable[[str], str],
    end: str,
    *,
    before: str = "",
    between: str = "",
    after: str = "",
    then: Sequence[Format] = (),
) -> Format:
    """Calls with their arguments in JSON. several: more than one.

    begin: what stands before the arguments of the function of a name; `then` follows it, where that is no text alone.
    end: what stands behind them. before, between, after: what stands around all calls.
    """
    schemas: list[Format] = [
        {"type": "json_schema", "json_schema": arguments_schema(function)} for function in functions
    ]
    contents = [sequence(*then, schema) for schema in schemas]
    return tagged(functions, several, begin, contents, end, before=before, between=between, after=after)


def json_calls(
    functions: Sequence[Function],
    several: bool,
    *,
    key: str = "arguments",
    before: str = "",
    end: str = "",
    between: str = "",
    after: str = "",
    each: str = "",
) -> Format:
    """Calls as {"name": ..., key: {...}}. each: what stands before every one; end: what stands behind it."""

    def begin(name: str) -> str:
        return f'{each}{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '

    return calls(functions, several, begin, "}" + end, before=before, between=between, after=after)


def typed_calls(
    functions: Sequence[Function],
    several: bool,
    begin: Callable[[str], str],
    end: str,
    argument: Callable[[str, bool], str],
    argument_end: str,
    *,
    excluded: str,
    before: str = "",
    between: str = "",
    after: str = "",
) -> Format:
    """Calls whose arguments stand between tags: strings as they are, other values as JSON.

    argument: what stands before the value of a name; told whether it is a string. excluded: what no string may hold,
    as it would end it. Raises RequestError for arguments that cannot be told apart so.
    """
    contents = [
        sequence(*_typed_arguments(function, argument, argument_end, excluded)) for function in functions
    ]  # fmt: skip
    return tagged(functions, several, begin, contents, end, before=before, between=between, after=after)


def tagged(
    functions: Sequence[Function],
    several: bool,
    begin: Callable[[str], str],
    contents: Sequence[Format],
    end: str,
    *,
    before: str = "",
    between: str = "",
    after: str = "",
) -> Format:
    """Calls whose arguments are `contents`, one for each function; all else as for `calls`."""
    tags = [
        {"type": "tag", "begin": begin(function["name"]), "content": content, "end": end}
        for function, content in zip(functions, contents, strict=True)
    ]
    written: Format = {
        "type": "tags_with_separator", "tags": tags, "separator": between, "at_least_one": True,
        "stop_after_first": not several,
    }  # fmt: skip
    return sequence(text(before), written, text(after)) if before or after else written


def named_arguments(function: Function) -> tuple[Mapping[str, Any], Mapping[str, Any], set[str]]:
    """The schema of a function's arguments; those that it names, with their schemas; and which of them it requires.

    Raises RequestError where a schema asks for more than that.
    """
    root = arguments_schema(function)
    properties, required = root.get("properties") or {}, root.get("required") or []
    asked = constraining(root) - {"type", "properties", "required", "additionalProperties"}
    if root["type"] != "object" or not isinstance(properties, Mapping) or not isinstance(required, list):
        raise cannot(function, "the schema of its arguments has to be an object with properties")
    if asked:
        raise cannot(
            function,
            f"the schema of its arguments has to be an object with properties, and {min(asked)!r} cannot be kept to",
        )
    names = set(map(str, required))
    if missing := names - set(properties):
        raise cannot(function, f"{min(missing)!r} is required and not among its properties")
    return root, properties, names


def _typed_arguments(function: Function, argument: Callable[[str, bool], str], end: str, excluded: str) -> list[Format]:
    root, properties, required = named_arguments(function)
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
    formats = []
    for name in properties:
        own = resolved(root, property_of(root, name))
        types = schema_types(root, own)
        if types and types <= {"string", "null"}:
            content = _string(function, name, own, types, excluded)
        elif "string" in types or not types:
            raise cannot(function, f"{name!r} may be a string or something else: give it one type")
        else:
            content = {"type": "json_schema", "json_schema": {**own, **definitions}}
        tag = {"type": "tag", "begin": argument(name, types == {"string"}), "content": content, "end": end}
        formats.append(tag if name in required else {"type": "optional", "content": tag})
    return formats


def _string(function: Function, name: str, schema: Mapping[str, Any], types: set[str], excluded: str) -> Format:
    """A string that stands as it is; null, where it may be, is written as JSON has it."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and set(schema) <= {*_PLAIN, "enum", "const"}:
        return either([text(value if isinstance(value, str) else "null") for value in values])
    unions = schema.get("anyOf", [])
    plain = isinstance(unions, list) and all(isinstance(each, Mapping) and not set(each) - _PLAIN for each in unions)
    if set(schema) - _PLAIN - {"anyOf"} or not plain:
        unknown = min((set(schema) - _PLAIN - {"anyOf"}) or {"anyOf"})
        raise cannot(function, f"{unknown!r} of the string {name!r} cannot be kept to in this model's form of calls")
    return {"type": "any_text", "excludes": [excluded]}


def cannot(function: Function, why: str) -> RequestError:
    """What is raised where a grammar cannot make sure of a function's calls."""
    return RequestError(f"tool_choice: a call of {function['name']!r} cannot be made sure of: {why}", "tools")
