"""What the JSON schema of a tool's arguments says of one of them."""

from collections.abc import Mapping
from typing import Any

_SCHEMA_TYPES = {
    str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array", dict: "object",
}  # fmt: skip


def schema_types(root: Mapping[str, Any], schema: Any) -> set[str]:
    """The types that a JSON schema allows, as far as it says; all are possible where it is empty.

    root: what "#/..." references of the schema refer to.
    """
    types: set[str] = set()
    waiting, seen = [schema], 0
    while waiting and seen < 64:  # schemas may refer to themselves
        schema, seen = waiting.pop(), seen + 1
        if not isinstance(schema, Mapping):
            continue
        named = schema.get("type")
        types.update(name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str))
        values = schema["enum"] if isinstance(schema.get("enum"), list) else []
        values = [*values, schema["const"]] if "const" in schema else values
        if not types:
            types.update(_SCHEMA_TYPES[type(value)] for value in values if type(value) in _SCHEMA_TYPES)
        for union in ("anyOf", "oneOf", "allOf"):
            waiting.extend(schema[union] if isinstance(schema.get(union), list) else ())
        if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/"):
            waiting.append(referred(root, reference))
    return types


def property_of(parameters: Any, key: str) -> Any:
    """The schema of one property of an object; None where there is none."""
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties.get(key) if isinstance(properties, Mapping) else None


def resolved(root: Mapping[str, Any], schema: Any) -> Mapping[str, Any]:
    """The schema itself in place of one that only refers to it; annotations beside the reference go."""
    for _ in range(64):  # schemas may refer to themselves
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not (isinstance(reference, str) and reference.startswith("#/")):
            break
        schema = referred(root, reference)
    return schema if isinstance(schema, Mapping) else {}


def referred(root: Mapping[str, Any], reference: Any) -> Any:
    """What "#", or "#/...", refers to; None where it refers to nothing there."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    target: Any = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        target = target.get(name) if isinstance(target, Mapping) else None
    return target


def has_type(value: Any, name: str) -> bool:
    """Whether a JSON value is of a type of JSON schemas."""
    if isinstance(value, float) and name == "integer":
        return value.is_integer()
    own = _SCHEMA_TYPES.get(type(value))
    return own == name or (own == "integer" and name == "number")
