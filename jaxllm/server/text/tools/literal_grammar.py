"""Grammars of calls' arguments as Python writes them: name=value, ..., with literals that follow JSON schemas.

Strings and numbers are written alike in JSON and in Python, as long as no string has two spellings (JSON's \\/ and
its halves of characters mean something else in Python). So what schemas ask of them is left to llguidance; arrays,
objects, unions, constants and references become rules of Lark.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.constraints.json_schema import constraining, prepare
from jaxllm.errors import RequestError
from jaxllm.server.text.tools.literals import python_to_json
from jaxllm.server.text.tools.parser import is_word
from jaxllm.server.text.tools.schemas import has_type, referred
from jaxllm.server.text.tools.written import Function, cannot, named_arguments

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_KEYWORDS: dict[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": (),
    "null": (),
    "array": ("items", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
"""By type, what is kept to."""
_KEPT = {"type", "enum", "const", "anyOf", "$ref"}.union(*_KEYWORDS.values())
_FREE = {"string": "STRING", "integer": "INTEGER", "number": "NUMBER", "boolean": "BOOLEAN", "null": '"None"'}
_ANY: Mapping[str, Any] = {}
_TERMINALS = r"""
STRING: /"([^"\\\x00-\x1f\x7f]|\\["\\bfnrt])*"/
INTEGER: /-?(0|[1-9][0-9]{0,99})/
NUMBER: /-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?([eE][+\-]?[0-9]{1,2})?/
BOOLEAN: "True" | "False"
"""  # numbers that a float can hold


def arguments_grammar(function: Function) -> str:
    """The Lark grammar of all that stands in the brackets of a call; arguments come in the schema's order.

    Raises RequestError for names that the parser does not read, and for what no such grammar can hold.
    """
    try:
        return _Writer(function).grammar()
    except RecursionError:
        raise cannot(function, "the schema of its arguments is nested too deeply") from None


class _Writer:
    """Writes the rules of one grammar."""

    def __init__(self, function: Function):
        self._function = function
        self._root: Mapping[str, Any] = {}
        self._rules: list[str] = []
        self._values: dict[int, str] = {}  # by the identity of their schemas, which refer to one another

    def grammar(self) -> str:
        self._root, arguments, required = named_arguments(self._function)
        for name in (self._function["name"], *arguments):
            if not is_word(name):
                raise cannot(self._function, f"{name!r} is no name in this model's form of calls: use letters and _")
        members = [
            (f"{_quoted(f'{name}=')} {self._value(schema, f'#/properties/{name}')}", name in required)
            for name, schema in arguments.items()
        ]
        return "\n".join((f"start: {self._members(members)}", *self._rules)) + _TERMINALS

    def _value(self, schema: Any, place: str) -> str:
        """The name of a rule for what a schema allows."""
        if schema is True or (isinstance(schema, Mapping) and not constraining(schema)):
            schema = _ANY
        if not isinstance(schema, Mapping):
            raise self._cannot(f"{schema!r} at {place} allows no value, or is no schema")
        if id(schema) not in self._values:
            name = self._values[id(schema)] = f"v{len(self._values)}"  # known to what it holds
            self._rules.append(f"{name}: {self._alternatives(schema, place)}")
        return self._values[id(schema)]

    def _alternatives(self, schema: Mapping[str, Any], place: str) -> str:
        asked = constraining(schema)
        if refused := asked - _KEPT:
            raise self._cannot(f"{min(refused)!r} at {place} cannot be kept to in this model's form of calls")
        for alone, beside in (("$ref", ()), ("anyOf", ()), ("const", ("type",)), ("enum", ("type",))):
            if alone in asked and (others := asked - {alone, *beside}):
                raise self._cannot(f"{min(others)!r} beside {alone!r} at {place} cannot be kept to")
        if "$ref" in asked:
            return self._value(self._referred(schema["$ref"], place), f"{place}/$ref")
        if "anyOf" in asked:
            several = self._get(schema, "anyOf", list, place)
            return self._either([self._value(each, f"{place}/anyOf/{i}") for i, each in enumerate(several)], place)
        if asked & {"const", "enum"}:
            types = self._types(schema, place)
            values = [schema["const"]] if "const" in schema else self._get(schema, "enum", list, place)
            fit = [value for value in values if any(has_type(value, each) for each in types)]
            return self._either([self._constant(value, place) for value in fit], place)
        return self._either([self._of_type(each, schema, place) for each in self._types(schema, place)], place)

    def _types(self, schema: Mapping[str, Any], place: str) -> list[str]:
        named = schema.get("type", list(_KEYWORDS))
        types = named if isinstance(named, list) else [named]
        if unknown := [each for each in types if each not in list(_KEYWORDS)]:
            raise self._cannot(f"'type' at {place} must not be {unknown[0]!r}")
        return [each for each in types if each != "integer" or "number" not in types]

    def _either(self, alternatives: Sequence[str], place: str) -> str:
        if not alternatives:
            raise self._cannot(f"no value fits the schema at {place}")
        return " | ".join(dict.fromkeys(alternatives))

    def _referred(self, reference: Any, place: str) -> Any:
        seen: list[Any] = []
        while reference not in seen:
            seen.append(reference)
            schema = referred(self._root, reference)
            if schema is None:
                raise self._cannot(f"{reference!r} at {place} refers to nothing in the schema")
            if not isinstance(schema, Mapping) or constraining(schema) != {"$ref"}:
                return schema
            reference = schema["$ref"]
        raise self._cannot(f"{reference!r} at {place} refers to itself alone")

    def _constant(self, value: Any, place: str) -> str:
        literal = _literal(value)
        if python_to_json(literal) is None:
            raise self._cannot(f"{literal[:50]} at {place} is no value in this model's form of calls")
        return _quoted(literal)

    def _of_type(self, kind: str, schema: Mapping[str, Any], place: str) -> str:
        if kind == "array":
            return self._array(schema, place)
        if kind == "object":
            return self._object(schema, place)
        if asked := {keyword: schema[keyword] for keyword in _KEYWORDS[kind] if keyword in schema}:
            prepared = prepare(json.dumps({"type": kind, **asked}))
            return self._rule(f"%json {json.dumps(prepared, ensure_ascii=False)}")
        return _FREE[kind]

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        least = self._get(schema, "minItems", int, place, 0)
        most = self._get(schema, "maxItems", int, place, None)
        if most is not None and most < least:
            raise self._cannot(f"'maxItems' at {place} is less than 'minItems'")
        if most == 0:
            return '"[]"'
        item = self._value(schema.get("items", True), f"{place}/items")
        if most != 1:
            item += f' (", " {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
        return f'"[" {item} "]"' if least else f'"[" ({item})? "]"'

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        further = schema.get("additionalProperties", True)
        required = list(map(str, self._get(schema, "required", list, place, ())))
        properties = self._get(schema, "properties", Mapping, place, {})
        schemas = {**properties, **{name: further for name in required if name not in properties}}
        members = [
            (f"{_quoted(_literal(name) + ': ')} {self._value(inner, f'{place}/properties/{name}')}", name in required)
            for name, inner in schemas.items()
        ]
        other = ""
        if further is not False:
            key = "STRING"
            if schemas:
                key = f"K{len(self._rules)}"
                self._rules.append(f"{key}: STRING & ~({' | '.join(_quoted(_literal(name)) for name in schemas)})")
            other = f'{key} ": " {self._value(further, f"{place}/additionalProperties")}'
        return f'"{{" {self._members(members, other)} "}}"'

    def _members(self, members: Sequence[tuple[str, bool]], other: str = "") -> str:
        """Some or all of the members in their order, then any number of others. Each: what it is, and whether it has
        to be there."""
        written = [(member, f'", " {member}' if must else f'(", " {member})?', must) for member, must in members]
        if other:
            written.append((f'{other} (", " {other})*', f'(", " {other})*', False))
        if not written:
            return '""'
        first, _, must = self._joined(written)
        return first if must else f"({first})?"

    def _joined(self, members: Sequence[tuple[str, str, bool]]) -> tuple[str, str, bool]:
        """At least one of the members, the same behind another one, and whether any has to be there.

        By halves: a chain of hundreds of rules would be nested too deeply.
        """
        if len(members) == 1:
            return members[0]
        middle = len(members) // 2
        (first, more, must), (later, also, others) = self._joined(members[:middle]), self._joined(members[middle:])
        some = self._rule(f"{first} {also}" if must else f"{first} {also} | {later}")
        return some, self._rule(f"{more} {also}"), must or others

    def _rule(self, body: str) -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def _get(self, schema: Mapping[str, Any], keyword: str, kind: type, place: str, default: Any = None) -> Any:
        value = schema.get(keyword, default)
        if keyword in schema and (not isinstance(value, kind) or isinstance(value, bool)):
            known = {int: "a whole number", list: "a list"}.get(kind, "an object")
            raise self._cannot(f"{keyword!r} at {place} must be {known}")
        return value

    def _cannot(self, why: str) -> RequestError:
        return cannot(self._function, f"{why}: leave it out, or say it otherwise")


def _literal(value: Any) -> str:
    """A JSON value as Python writes it, strings in double quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_literal(name)}: {_literal(inner)}' for name, inner in value.items())}}}"
    return str(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    """The text as Lark quotes it."""
    return json.dumps(text, ensure_ascii=False)
