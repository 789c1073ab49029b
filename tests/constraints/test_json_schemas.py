"""Whatever is drawn, it is what the schema asks for; what cannot be kept to is refused by name."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel, Field

from jaxllm.constraints import Compiler
from jaxllm.constraints.json_schema import prepare
from jaxllm.errors import RequestError
from jaxllm.structured_outputs import StructuredOutputs
from tests.constraints.conftest import Drawer

SAMPLE = 500
_DRAFTS = {"draft2020-12": jsonschema.Draft202012Validator, "draft7": jsonschema.Draft7Validator}


def _suite(material: Path) -> list[tuple[str, str, Any]]:
    """Where each schema stands, its draft, and the schema."""
    root = material / "conformance" / "JSON-Schema-Test-Suite" / "tests"
    found = []
    for draft in _DRAFTS:
        for file in sorted((root / draft).rglob("*.json")):
            if file.stem in ("ecmascript-regex", "non-bmp-regex"):  # Python's expressions, which judge, are no ECMA's
                continue
            found += [
                (f"{draft}/{file.stem}: {group['description']}", draft, group["schema"])
                for group in json.loads(file.read_text())
                if "\\\\p{" not in json.dumps(group["schema"])  # nor do they know Unicode's properties
            ]
    return found


def _judge(schema: Any, draft: str) -> Any:
    """By the draft that the schema names, the newest where it names none; by its own where it is none of that."""
    newest = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        newest.check_schema(schema)
    except jsonschema.SchemaError:
        return _DRAFTS[draft](schema)
    return newest(schema)


def test_conformance_sample(material: Path, drawer: Drawer) -> None:
    rng = np.random.default_rng(20)
    sample = random.Random(20).sample(_suite(material), SAMPLE)
    refused, unfinished, valid = [], [], 0
    for name, draft, schema in sample:
        try:
            form = StructuredOutputs(json=schema)
            drawer.compiler.compile(form, ())
        except RequestError as error:
            refused.append((name, error))
            continue
        judge = _judge(schema, draft)
        answers = [text for _ in range(2) if (text := drawer.draw(form, rng)) is not None]
        for text in answers:
            errors = [error.message for error in judge.iter_errors(json.loads(text))]
            assert not errors, (name, schema, text)
        valid += bool(answers)
        unfinished += [name] * (not answers)
    assert len(refused) + valid + len(unfinished) == SAMPLE
    assert valid > 0.5 * SAMPLE, "most of it is supported"
    assert len(unfinished) <= 0.02 * SAMPLE, unfinished  # the draws were too long: nothing can be said of them
    for name, error in refused:  # of each it is said what is wrong with it
        assert error.param == "structured_outputs"
        assert any(sign in str(error) for sign in (
            "is not supported", "Unimplemented", "Unknown format", "Unsatisfiable", "not present", "does not exist",
            "Failed to generate regex", "too many digits", "disjoint", "regex parse error", "no text that fits",
            "circular", "only supported when", "minProperties",
        )), (name, error)  # fmt: skip


class _Address(BaseModel):
    street: str = Field(max_length=20)
    number: int = Field(ge=1, le=999)
    kind: Literal["home", "work"] = "home"


class _Cat(BaseModel):
    species: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class _Dog(BaseModel):
    species: Literal["dog"]
    tricks: list[str] = Field(max_length=3)


class _Person(BaseModel):
    """A person, with all that pydantic writes into schemas."""

    name: str = Field(pattern=r"^[A-Z][a-z]{1,10}$")
    age: int | None = None
    addresses: list[_Address] = Field(min_length=1, max_length=2)
    pet: _Cat | _Dog = Field(discriminator="species", description="one of them")
    friends: "list[_Person]" = Field(default_factory=list, max_length=1)
    scores: dict[str, float] = Field(default_factory=dict)


NESTED = {
    "order": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "placed": {"type": "string", "format": "date-time"},
            "lines": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
                        "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
                        "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
                        "options": {
                            "anyOf": [{"type": "null"}, {"type": "object", "additionalProperties": {"type": "string"}}]
                        },
                    },
                    "required": ["sku", "quantity"],
                    "additionalProperties": False,
                },
            },
            "ship": {"$ref": "#/$defs/address"},
            "bill": {"allOf": [{"$ref": "#/$defs/address"}, {"required": ["vat"]}]},
        },
        "required": ["id", "lines", "ship", "bill"],
        "additionalProperties": False,
        "$defs": {
            "address": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "minLength": 1, "maxLength": 12},
                    "country": {"enum": ["DE", "FR", "日本"]},
                    "vat": {"type": "string", "maxLength": 8},
                },
                "required": ["city", "country"],
                "additionalProperties": False,
            }
        },
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": ["integer", "string"]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
    },
    "expression": {
        "oneOf": [
            {"type": "number"},
            {
                "type": "object",
                "properties": {
                    "op": {"enum": ["+", "*"]},
                    "left": {"$ref": "#"},
                    "right": {"$ref": "#"},
                },
                "required": ["op", "left", "right"],
                "additionalProperties": False,
            },
        ]
    },
    "pydantic": _Person.model_json_schema(),
}  # fmt: skip


@pytest.mark.parametrize("name", NESTED)
def test_nested_schemas(name: str, drawer: Drawer) -> None:
    rng = np.random.default_rng(len(name))
    judge = jsonschema.Draft202012Validator(NESTED[name], format_checker=jsonschema.FormatChecker())
    for _ in range(5):
        value = drawer.draw_json(StructuredOutputs(json=NESTED[name]), rng)
        judge.validate(value)
        if name == "pydantic":
            _Person.model_validate(value)


def test_properties_come_in_the_schemas_order(drawer: Drawer) -> None:
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in "zay"}, "required": ["y", "a", "z"]}
    form = StructuredOutputs(json=schema, disable_additional_properties=True)
    value = drawer.draw_json(form, np.random.default_rng(0))
    assert isinstance(value, dict)
    assert list(value) == ["z", "a", "y"]


def test_whitespace(drawer: Drawer) -> None:
    rng = np.random.default_rng(1)
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}
    tight = [drawer.draw(StructuredOutputs(json=schema, disable_any_whitespace=True), rng) for _ in range(5)]
    assert all(text is not None and " " not in text and "\n" not in text for text in tight)
    spaced = [drawer.draw(StructuredOutputs(json=schema, whitespace_pattern=" "), rng) for _ in range(20)]
    assert any(text is not None and " " in text for text in spaced)
    assert not any(text is not None and ("\n" in text or "  " in text) for text in spaced)


@pytest.mark.parametrize(
    ("schema", "value", "valid"),
    [
        ({"properties": {"a": {}}}, {"b": 1}, False),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "null"}}, {"b": None}, True),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"a": {}}}}}, {"b": 1}, False),
        ({"items": {"anyOf": [{"properties": {"a": {}}}]}}, [{"b": 1}], False),
        ({"enum": [{"properties": {"a": {}}}]}, {"properties": {"a": {}}}, True),  # a value, and no schema
        ({"properties": {"properties": {"properties": {"a": {}}}}}, {"properties": {"a": 1}}, True),
    ],
)
def test_disabled_additional_properties(schema: Any, value: Any, valid: bool) -> None:
    prepared = prepare(json.dumps(schema), disable_additional_properties=True)
    assert jsonschema.Draft202012Validator(prepared).is_valid(value) == valid


@pytest.mark.parametrize("value", [True, {}, {"type": "number", "maximum": 5.0}, "true"])
def test_what_a_schema_may_be(value: Any, drawer: Drawer) -> None:
    drawer.draw_json(StructuredOutputs(json=value), np.random.default_rng(2))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' at #"),
        ({"properties": {"a": {"not": {}}}}, "'not' at #/properties/a"),
        ({"anyOf": [{}, {"if": {}}]}, "'if' at #/anyOf/1"),
        ({"$defs": {"x": {"contains": {}}}, "$ref": "#/$defs/x"}, "'contains' at #/$defs/x"),
        ({"type": "object", "requried": ["a"]}, "'requried' at #"),
        ({"type": "string", "nullable": True}, "'nullable' at #"),
        ({"type": "string", "format": "idn-email"}, "idn-email"),
        ({"type": "object", "x-guidance": {"lenient": True}}, "'x-guidance' at #"),
        ({"type": "object", "minProperties": 3}, "'minProperties': 3 at #"),
        ({"type": "object", "minProperties": 2, "required": 5}, "'minProperties': 2 at #"),
        ({"type": "object", "minProperties": 2, "required": [{}, "a", "a"]}, "'minProperties': 2 at #"),
        ({"$ref": "https://example.com/schema"}, "https://example.com/schema"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, "'oneOf' is not supported where its alternatives may overlap"),
        ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
        ({"enum": []}, "Unsatisfiable"),
        (False, "Unsatisfiable"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_by_name(schema: Any, named: str, compiler: Compiler) -> None:
    with pytest.raises(RequestError, match="structured_outputs") as raised:
        compiler.compile(StructuredOutputs(json=schema), ())
    assert named in str(raised.value)


def test_annotations_say_nothing(drawer: Drawer) -> None:
    schema = {
        "title": "t", "description": "d", "default": 1, "examples": [2], "$comment": "c", "deprecated": True,
        "readOnly": True, "writeOnly": False, "x-order": 3, "const": 5,
    }  # fmt: skip
    assert drawer.draw_json(StructuredOutputs(json=schema), np.random.default_rng(3)) == 5
