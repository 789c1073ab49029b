"""Calls as Python writes them, with arguments that follow JSON schemas: whatever is drawn means the same to Python."""

import ast
import itertools
import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from jaxllm.errors import RequestError
from jaxllm.server.text import AnswerFormat, AnswerReader
from jaxllm.server.text.constraining import constrain
from tests.constraints.conftest import EOS, Drawer

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
NODE = {
    "type": "object", "additionalProperties": False, "required": ["v"],
    "properties": {"v": {"enum": ['é"\n', None, True, 1.5, [1, {"a'": "b"}]]}, "kids": {"$ref": "#/$defs/kids"}},
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "scalars": {
        "properties": {"s": STRING, "i": INTEGER, "n": {"type": "number"}, "b": {"type": "boolean"}},
        "required": ["i", "b"],
    },
    "bounds": {
        "properties": {
            "s": {"type": "string", "pattern": "^[é\"'\\\\]{2,5}$"},
            "short": {"type": "string", "minLength": 1, "maxLength": 3},
            "day": {"type": "string", "format": "date"},
            "i": {"type": "integer", "minimum": -5, "exclusiveMaximum": 300, "multipleOf": 5},
            "n": {"type": "number", "minimum": 0.5, "maximum": 7},
        },
        "required": ["s", "short", "day", "i", "n"],
    },
    "unions": {
        "properties": {
            "t": {"type": ["integer", "null", "boolean"]},
            "a": {"anyOf": [{"type": "array", "items": INTEGER, "maxItems": 2}, {"type": "null"}], "default": None},
            "c": {"const": 'it\'s "ü"\\', "title": "C"},
            "e": {"type": ["string", "integer"], "enum": ["x", 1, 2.0, None, "1"]},
        },
        "required": ["t", "a", "c", "e"],
    },
    "arrays": {
        "properties": {
            "none": {"type": "array", "maxItems": 0},
            "one": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 1},
            "some": {
                "type": "array", "minItems": 2,
                "items": {"type": "array", "items": {"enum": [1, 12]}, "maxItems": 3},
            },
        },
        "required": ["none", "one", "some"],
    },
    "objects": {
        "properties": {
            "closed": {
                "type": "object", "additionalProperties": False, "required": ["b", "d"],
                "properties": dict.fromkeys("abcde", INTEGER),
            },
            "counts": {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": INTEGER},
            "more": {"type": "object", "required": ["é"], "additionalProperties": {"type": "boolean"}},
        },
        "required": ["closed", "more"],
    },
    "references": {
        "properties": {"tree": {"$ref": "#/$defs/node", "description": "t"}, "self": {"$ref": "#"}},
        "required": ["tree"], "additionalProperties": False,
        "$defs": {"node": NODE, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
    },
    "anything": {
        "properties": {"x": {}, "y": True, "l": {"type": "array"}, "o": {"type": "object"}},
        "required": ["x"],
    },
    "many": {"properties": {f"p{i}": {"type": "boolean"} for i in range(700)}, "required": ["p3", "p400"]},
}  # fmt: skip


def tools(parameters: dict[str, Any], name: str = "f") -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}]


def read(text: str, offered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of the calls that an answer is made of, which has no content."""
    reader, arguments = AnswerReader(AnswerFormat("pythonic"), offered), dict[int, str]()
    for part in (reader.feed(text), reader.feed("", final=True)):
        assert not part.content, text
        for call in part.calls:
            arguments[call.index] = arguments.get(call.index, "") + call.arguments
    return [json.loads(each) for each in arguments.values()]


def meant(text: str) -> list[dict[str, Any]]:
    """The same as Python reads it."""
    called = ast.parse(text, mode="eval").body
    assert isinstance(called, ast.List)
    calls = [call for call in called.elts if isinstance(call, ast.Call)]
    assert len(calls) == len(called.elts)
    return [{str(each.arg): ast.literal_eval(each.value) for each in call.keywords} for call in calls]


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_drawn_follows_the_schema(name: str, drawer: Drawer) -> None:
    offered = tools(SCHEMAS[name])
    structured = constrain(AnswerFormat("pythonic"), None, must_call=offered)
    assert structured is not None
    rng = np.random.default_rng()
    drawn = (drawer.draw(structured, rng) for _ in range(60))
    ended = list(itertools.islice(filter(None, drawn), 8))
    assert ended, "none came to its end"
    for text in ended:
        calls = read(text, offered)
        assert calls == meant(text)
        for arguments in calls:
            jsonschema.Draft202012Validator(offered[0]["function"]["parameters"]).validate(arguments)


def fits(drawer: Drawer, text: str, parameters: dict[str, Any], several: bool = True) -> bool:
    """Whether the grammar lets this be the answer."""
    structured = constrain(AnswerFormat("pythonic"), None, must_call=tools(parameters), several=several)
    assert structured is not None
    constraint = drawer.compiler.compile(structured, (EOS,))
    for token in drawer.tokenizer.encode(text, add_special_tokens=False):
        if not drawer.allowed(constraint)[token]:
            return False
        constraint.accept(token)
    return bool(drawer.allowed(constraint)[EOS])


@pytest.mark.parametrize("limit", [{}, {"maxLength": 40}], ids=["free", "bounded"])
def test_strings_of_any_characters(limit: dict[str, Any], drawer: Drawer) -> None:
    parameters = {"properties": {"s": STRING | limit}}
    for value in ("", "é😀 ", "a \"b\" \\ 'c'", "\n\t\r\b\f", '[f(s="")]', "<|python_end|>", "\u2028/"):
        text = f"[f(s={json.dumps(value, ensure_ascii=False)})]"
        assert fits(drawer, text, parameters), text
        assert read(text, tools(parameters)) == meant(text) == [{"s": value}]
    for literal in (r'"\/"', r'"\ud83d\ude00"', "'a'", '"a', '"\n"', 'f"a"', '"""a"""', r'"\x41"'):
        assert not fits(drawer, f"[f(s={literal})]", parameters), literal


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("[f(a=1, b=True)]", True),
        ("[f(b=False)]", True),
        ("[f(b=None)]", False),
        ("[f(b=true)]", False),
        ("[f(a=1)]", False),
        ("[f()]", False),
        ("[f(b=True, a=1)]", False),
        ("[f(a=1, a=1, b=True)]", False),
        ("[f(b=True, c=1)]", False),
        ("[g(b=True)]", False),
        ("[]", False),
        ('[f(b=True, o={"k": 1, "z": None})]', True),
        ('[f(b=True, o={"k": "1"})]', False),
        ("[f(b=True), f(b=True)]", True),
    ],
)
def test_which_arguments_there_may_be(text: str, fit: bool, drawer: Drawer) -> None:
    free = {"type": "object", "properties": {"k": INTEGER}}
    parameters = {"properties": {"a": INTEGER, "b": {"type": "boolean"}, "o": free}, "required": ["b"]}
    assert fits(drawer, text, parameters) == fit
    assert fits(drawer, text, parameters, several=False) == (fit and "), " not in text)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"a": {"type": "array", "uniqueItems": True}}, "'uniqueItems' at #/properties/a cannot be kept to"),
        ({"a": {"items": {"oneOf": [STRING]}}}, "'oneOf' at #/properties/a/items cannot be kept to"),
        ({"a": {"type": "string", "nullable": True}}, "'nullable' at #/properties/a"),
        ({"a": {"type": "object", "properties": {"b": {"not": {}}}}}, "'not' at #/properties/a/properties/b"),
        ({"a": {"anyOf": [STRING], "minLength": 3}}, "'minLength' beside 'anyOf' at #/properties/a"),
        ({"a": {"$ref": "#/$defs/x", "type": "string"}}, r"'type' beside '\$ref' at #/properties/a"),
        ({"a": {"enum": [1], "maximum": 3}}, "'maximum' beside 'enum' at #/properties/a"),
        ({"a": {"$ref": "#/$defs/x"}}, r"'#/\$defs/x' at #/properties/a refers to nothing"),
        ({"a": {"$ref": ["b"]}}, "refers to nothing"),
        ({"a": {"$ref": "#/properties/a"}}, "refers to itself alone"),
        ({"a": {"enum": ["b"], "type": "integer"}}, "no value fits the schema at #/properties/a"),
        ({"a": {"enum": [float("inf")]}}, "Infinity at #/properties/a is no value"),
        ({"a": {"enum": 3}}, "'enum' at #/properties/a must be a list"),
        ({"a": {"anyOf": []}}, "no value fits"),
        ({"a": False}, "False at #/properties/a allows no value"),
        ({"a": {"type": "array", "items": [STRING]}}, "at #/properties/a/items allows no value, or is no schema"),
        ({"a": {"type": "array", "minItems": "1"}}, "'minItems' at #/properties/a must be a whole number"),
        ({"a": {"type": "array", "minItems": 2, "maxItems": 1}}, "'maxItems' at #/properties/a is less"),
        ({"a": {"type": "object", "properties": []}}, "'properties' at #/properties/a must be an object"),
        ({"a": {"type": ["string", "text"]}}, "'type' at #/properties/a must not be 'text'"),
        ({"a b": STRING}, "'a b' is no name"),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestError, match=f"a call of 'f' cannot be made sure of: .*{why}") as raised:
        constrain(AnswerFormat("lfm2"), None, must_call=tools({"properties": parameters}))
    assert raised.value.param == "tools"


def test_names_and_depths_that_are_refused() -> None:
    with pytest.raises(RequestError, match="'look up' is no name"):
        constrain(AnswerFormat("pythonic"), None, must_call=tools({}, name="look up"))
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="nested too deeply"):
        constrain(AnswerFormat("pythonic"), None, must_call=tools({"properties": {"a": deep}}))
