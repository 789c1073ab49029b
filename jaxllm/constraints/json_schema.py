"""JSON schemas, made ready for llguidance: nothing that a schema says is ignored in silence."""

import json
from collections.abc import Mapping
from typing import Any

from jaxllm.errors import RequestError

CONSTRAINTS = frozenset((
    "$ref", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength",
    "minProperties", "minimum", "multipleOf", "oneOf", "pattern", "patternProperties", "prefixItems", "properties",
    "required", "type",
))  # fmt: skip
"""Keywords that are kept to; llguidance refuses some of their values and combinations."""
ANNOTATIONS = frozenset((
    "$anchor", "$comment", "$defs", "$id", "$schema", "$vocabulary", "contentEncoding", "contentMediaType",
    "contentSchema", "default", "definitions", "deprecated", "description", "discriminator", "example", "examples",
    "id", "readOnly", "title", "writeOnly",
))  # fmt: skip
"""Keywords that constrain nothing. (A discriminator only names the property by which alternatives differ.)"""

WHITESPACE = r"[ \t]{1,2}|\r?\n[ \t]{0,40}"
"""What may stand between the tokens of JSON unless a request says otherwise: blanks, or a line break and indentation.
Models that are unsure write white space without end where they may."""

_ONE = ("additionalItems", "additionalProperties", "items", "contentSchema")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def prepare(
    schema: str,
    *,
    whitespace_pattern: str | None = None,
    disable_any_whitespace: bool = False,
    disable_additional_properties: bool = False,
) -> dict[str, Any]:
    """The schema with llguidance's options in it. Options: as in StructuredOutputs. Raises RequestError."""
    value = json.loads(schema, parse_float=_number)
    if isinstance(value, bool):
        value = {} if value else {"enum": []}
    try:
        _check(value, "#")
    except RecursionError:
        raise RequestError("structured_outputs: json: is nested too deeply", "structured_outputs") from None
    if disable_additional_properties:
        value = _closed(value)
    options: dict[str, Any] = {"lenient": False, "coerce_one_of": False}
    if disable_any_whitespace:
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = whitespace_pattern or WHITESPACE
    return value | {"x-guidance": options}


def _number(text: str) -> float | int:
    """JSON knows one kind of numbers: 2.0 items are 2."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _check(schema: Any, place: str) -> None:
    """Raises RequestError for a keyword that would not be kept to."""
    if not isinstance(schema, Mapping):
        return
    for keyword, value in schema.items():
        if keyword not in CONSTRAINTS and keyword not in ANNOTATIONS and not _is_extension(keyword):
            raise RequestError(
                f"structured_outputs: json: {keyword!r} at {place} is not supported: leave it out, or say it otherwise",
                "structured_outputs",
            )
        for name, inner in _inner(keyword, value):
            _check(inner, f"{place}/{name}")
    least, required = schema.get("minProperties"), schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else ()
    if isinstance(least, (int, float)) and least > max(1, len(names)):
        # Nothing keeps two further properties from having one name, and then they are one.
        raise RequestError(
            f"structured_outputs: json: 'minProperties': {least} at {place} is more than 1 and than the required "
            "properties are: require them by name, or use an array",
            "structured_outputs",
        )


def constraining(schema: Mapping[str, Any]) -> set[str]:
    """The schema's keywords that constrain something, or that are not known."""
    return {keyword for keyword in schema if keyword not in ANNOTATIONS and not _is_extension(keyword)}


def _is_extension(keyword: str) -> bool:
    return keyword.startswith("x-") and keyword != "x-guidance"


def _inner(keyword: str, value: Any) -> list[tuple[str, Any]]:
    """The schemas that a keyword holds, and where."""
    if keyword in _SEVERAL and isinstance(value, list):
        return [(f"{keyword}/{i}", inner) for i, inner in enumerate(value)]
    if keyword in _ONE:
        return [(keyword, value)]
    if keyword in _NAMED and isinstance(value, Mapping):
        return [(f"{keyword}/{name}", inner) for name, inner in value.items()]
    return []


def _closed(schema: Any) -> Any:
    """Objects that say nothing of further properties have none."""
    if not isinstance(schema, Mapping):
        return schema
    closed: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _SEVERAL and isinstance(value, list):
            closed[keyword] = [_closed(inner) for inner in value]
        elif keyword in _ONE:
            closed[keyword] = _closed(value)
        elif keyword in _NAMED and isinstance(value, Mapping):
            closed[keyword] = {name: _closed(inner) for name, inner in value.items()}
        else:
            closed[keyword] = value
    if "properties" in closed and "additionalProperties" not in closed and "patternProperties" not in closed:
        closed["additionalProperties"] = False
    return closed
