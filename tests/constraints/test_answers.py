"""Answers to chats that a grammar has seen to: whatever is drawn, the parsers of calls and reasoning read it."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from jaxllm.constraints import Compiler
from jaxllm.errors import RequestError
from jaxllm.server.text import AnswerFormat, AnswerReader, Tokenizer, reasoning
from jaxllm.server.text.answer import HARMONY_REASONING, HARMONY_TOOLS
from jaxllm.server.text.constraining import constrain
from jaxllm.server.text.tools import PARSERS
from jaxllm.server.text.tools.schemas import schema_types
from jaxllm.structured_outputs import StructuredOutputs
from tests.constraints.conftest import PADDING, Drawer

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look-up.it",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what for"},
                    "unit": {"$ref": "#/$defs/unit"},
                    "many": {"type": "integer", "minimum": 1, "maximum": 99},
                    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
                    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                },
                "required": ["query", "many"],
                "additionalProperties": False,
                "$defs": {"unit": {"type": "string", "enum": ["°C", "°F"], "title": "Unit"}},
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]
WRITTEN = [*PARSERS, HARMONY_TOOLS]


class Marked:
    """The demo model's tokenizer with a parser's marks for special tokens."""

    def __init__(self, tokenizer: Tokenizer, marks: tuple[str, ...]):
        self._tokenizer = tokenizer
        self.marks = {tokenizer.vocab_size + i: mark for i, mark in enumerate(marks)}
        assert len(marks) <= PADDING
        self.special_token_ids = {*tokenizer.special_token_ids, *self.marks}
        self.vocab_size = tokenizer.vocab_size + len(marks)
        self.token_bytes = lambda token: self.marks.get(token, "").encode() or tokenizer.token_bytes(token)
        self.encode = tokenizer.encode


@pytest.fixture(scope="module")
def marked(tokenizer: Tokenizer) -> Iterator[Drawer]:
    """Draws of a vocabulary in which the marks of all formats are special tokens."""
    forms = [AnswerFormat(tools=name) for name in WRITTEN]
    forms += [AnswerFormat(reasoning=name) for name in (*reasoning.PARSERS, HARMONY_REASONING)]
    marks = {mark for form in forms for mark in AnswerReader(form, TOOLS).special_tokens}
    vocabulary = Marked(tokenizer, tuple(sorted(marks)))
    compiler = Compiler(lambda: vocabulary, tokenizer.vocab_size + PADDING, [0])
    drawer = Drawer(compiler, vocabulary, tokenizer.vocab_size + PADDING)  # type: ignore[arg-type]
    drawer.closing[sorted(vocabulary.marks)] = True
    yield drawer
    compiler.close()


def check_calls(calls: list[Any], tools: list[dict[str, Any]]) -> None:
    by_name = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    for call in calls:
        jsonschema.Draft202012Validator(by_name[call[0]]).validate(json.loads(call[1]))


def read(form: AnswerFormat, text: str, prompt: str = "") -> tuple[str, str, list[tuple[str, str]]]:
    """The content, the reasoning and the calls of an answer that comes character by character."""
    reader = AnswerReader(form, TOOLS, prompt=prompt)
    content, thoughts, calls = "", "", dict[int, list[str]]()
    for i in range(len(text) + 1):
        parsed = reader.feed(text[i : i + 1], final=i == len(text))
        content, thoughts = content + parsed.content, thoughts + parsed.reasoning
        for call in parsed.calls:
            calls.setdefault(call.index, [call.name, ""])[1] += call.arguments
    return content, thoughts, [(name, arguments) for name, arguments in calls.values()]


@pytest.mark.parametrize("special", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", WRITTEN)
def test_calls_that_have_to_be_made(name: str, special: bool, marked: Drawer, drawer: Drawer) -> None:
    """special: the marks of the format are special tokens; else they are text."""
    if name == HARMONY_TOOLS and not special:
        pytest.skip("its marks are tokens")
    form = AnswerFormat(name, HARMONY_REASONING if name == HARMONY_TOOLS else None)
    drawer = marked if special else drawer
    rng = np.random.default_rng(len(name))
    numbers = set()
    for several, chosen in ((True, TOOLS), (False, TOOLS[:1])):
        structured = constrain(form, None, must_call=chosen, several=several)
        assert structured is not None
        drawn = (drawer.draw(structured, rng) for _ in range(24))
        for text in itertools.islice(filter(None, drawn), 4):
            content, _, calls = read(form, text)
            assert calls, text
            assert not content.strip(), text
            check_calls(calls, chosen)
            assert several or len(calls) == 1
            numbers.add(len(calls))
    assert numbers, "none came to its end"


def test_calls_without_a_parser_are_generic_json(drawer: Drawer) -> None:
    structured = constrain(AnswerFormat(), None, must_call=TOOLS, several=False)
    assert structured is not None
    text = next(text for _ in range(9) if (text := drawer.draw(structured, np.random.default_rng(_))) is not None)
    (call,) = json.loads(text)
    assert set(call) == {"name", "parameters"}
    check_calls([(call["name"], json.dumps(call["parameters"]))], TOOLS)


@pytest.mark.parametrize(
    ("prompt", "starts", "ends"),
    [
        ("Hi", ("<think>",), ("</think>",)),
        ("Hi<think>\n", (), ("</think>",)),
        ("Hi<think>\n\n</think>\n\n", (), ()),
    ],
)
def test_the_answer_comes_behind_thinking(
    prompt: str, starts: tuple[str, ...], ends: tuple[str, ...], marked: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = AnswerFormat("hermes", "think_tags")
    structured = constrain(form, StructuredOutputs(choice=("yes", "no")), prompt=prompt)
    assert structured is not None
    assert (structured.thinking_starts, structured.thinking_ends) == (starts, ends)
    monkeypatch.setattr(marked, "errors", "replace")  # thoughts may hold parts of characters
    for seed in range(5):
        text = marked.draw(structured, np.random.default_rng(seed))
        if text is not None:
            content, _, _ = read(form, text, prompt)
            assert content in ("yes", "no"), text


def test_implied_thinking() -> None:
    structured = constrain(AnswerFormat(reasoning="deepseek_r1"), StructuredOutputs(regex="a"), prompt="Hi")
    assert structured is not None
    assert (structured.thinking_starts, structured.thinking_ends) == ((), ("</think>",))


@pytest.mark.parametrize(
    "asked",
    [
        StructuredOutputs(json={"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}),
        StructuredOutputs(json_object=True),
        StructuredOutputs(regex="[0-9]{2}"),
        StructuredOutputs(choice=("yes", "no")),
        StructuredOutputs(grammar='start: "x"+ "y"'),
        StructuredOutputs(structural_tag={"format": {"type": "const_string", "value": "hm"}}),
    ],
    ids=["json", "json_object", "regex", "choice", "grammar", "structural_tag"],
)
@pytest.mark.parametrize(
    "form",
    [AnswerFormat("hermes"), AnswerFormat("lfm2"), AnswerFormat(HARMONY_TOOLS, HARMONY_REASONING)],
    ids=["hermes", "lfm2", "harmony"],
)
def test_an_answer_of_a_form_may_also_be_a_call(
    form: AnswerFormat, asked: StructuredOutputs, marked: Drawer, drawer: Drawer
) -> None:
    structured = constrain(form, asked, may_call=TOOLS[1:])
    assert structured is not None
    rng = np.random.default_rng(7)
    kinds = set()
    for _ in range(16):
        text = marked.draw(structured, rng)
        if text is None:
            continue
        content, _, calls = read(form, text)
        assert bool(content) != bool(calls), text
        check_calls(calls, TOOLS)
        kinds.add(bool(calls))
        if content:
            constraint = drawer.compiler.compile(asked, (0,))
            for token in drawer.tokenizer.encode(content, add_special_tokens=False):
                constraint.accept(token)  # raises for what does not fit
    assert kinds


@pytest.mark.parametrize(
    ("form", "fields", "why"),
    [
        (AnswerFormat("hermes"), {"asked": StructuredOutputs(regex="a"), "must_call": TOOLS}, "leave one out"),
        (
            AnswerFormat("hermes"),
            {"asked": StructuredOutputs(json_object=True, disable_any_whitespace=True), "may_call": TOOLS},
            "may also call tools",
        ),
    ],
)
def test_what_cannot_be(form: AnswerFormat, fields: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestError, match=why):
        constrain(form, **{"asked": None, **fields})


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "b"}}}, "'pattern' of the string 'a'"),
        ({"type": "object", "properties": {"a": {"type": ["string", "integer"]}}}, "'a' may be a string or something"),
        ({"type": "object", "properties": {"a": {"type": "string", "anyOf": 5}}}, "'anyOf' of the string 'a'"),
        ({"type": "object", "properties": {"a": {"type": "string", "enum": 5}}}, "'enum' of the string 'a'"),
        ({"type": "object", "properties": {"a": {}}}, "'a' may be a string or something"),
        ({"type": "object", "required": ["a"]}, "'a' is required and not among"),
        ({"anyOf": [{"type": "object"}]}, "has to be an object with properties"),
        ({"properties": {"a": {"type": "integer"}}, "maxProperties": 0}, "'maxProperties' cannot be kept to"),
    ],
)
def test_arguments_between_tags_have_to_be_told_apart(parameters: dict[str, Any], why: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(RequestError, match=f"a call of 'f' cannot be made sure of: .*{why}"):
        constrain(AnswerFormat("qwen3_coder"), None, must_call=[tool])


ODD: list[Any] = [5, None, True, "x", "#/a", [], [5], [{}], [["string"]], {}, {"a": 5}, ["string", {"type": "null"}]]
KEYWORDS = (
    "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "properties", "required", "items", "pattern",
    "additionalProperties", "minimum", "maxLength",
)  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_schema_that_is_none_is_refused_or_does_no_harm(name: str) -> None:
    for keyword, odd, base in itertools.product(KEYWORDS, ODD, ({}, {"type": "string"}, {"type": "object"})):
        own = {**base, keyword: odd}
        for parameters in (own, {"type": "object", "properties": {"a": own}}):
            tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
            with contextlib.suppress(RequestError):
                constrain(AnswerFormat(tools=name), None, must_call=tools)
            assert all(isinstance(named, str) for named in schema_types(parameters, own))


def test_nothing_is_asked_for() -> None:
    assert constrain(AnswerFormat("hermes", "think_tags"), None, may_call=TOOLS) is None
