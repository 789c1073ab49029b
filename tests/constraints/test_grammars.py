"""Regular expressions, choices, Lark, tags: what is drawn fits them, and nothing else can be drawn."""

import json
import re
import time
from typing import cast

import numpy as np
import pytest
from llguidance import LLMatcher

from jaxllm.constraints import Compiler
from jaxllm.constraints.constraint import Grammar
from jaxllm.errors import ConstraintError, RequestError
from jaxllm.server.text import Tokenizer
from jaxllm.structured_outputs import StructuredOutputs
from tests.constraints.conftest import EOS, Drawer

ARGUMENTS = {
    "type": "object", "properties": {"a": {"type": "integer", "maximum": 9999}}, "required": ["a"],
    "additionalProperties": False,
}  # fmt: skip
JSON = {"type": "json_schema", "json_schema": ARGUMENTS}
_SPACE = r"[ \t\r\n]*"
_OBJECT = r"\{" + _SPACE + '"a"' + _SPACE + ":" + _SPACE + "-?[0-9]+" + _SPACE + r"\}"


def answers(drawer: Drawer, form: StructuredOutputs, seed: int, count: int = 12) -> list[str]:
    rng = np.random.default_rng(seed)
    found = [text for _ in range(count) if (text := drawer.draw(form, rng)) is not None]
    assert found
    return found


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[a-z]{2,9}", "a|bc|(de)+f", r"(?i)jax.{0,4}[^a-z]", "日本(語|国)", "x*"]
)
def test_regular_expressions(pattern: str, drawer: Drawer) -> None:
    for text in answers(drawer, StructuredOutputs(regex=pattern), 1):
        assert re.fullmatch(pattern, text), text


def test_choices(drawer: Drawer) -> None:
    texts = ("yes", "no", "yes and no", 'a "quoted" \\one\n', "ünïcode", "/slash/")
    form = StructuredOutputs(choice=texts)
    assert set(answers(drawer, form, 2, 30)) <= set(texts)
    for text in texts:
        constraint = drawer.compiler.compile(form, (EOS,))
        more = [constraint.accept(token) for token in drawer.tokenizer.encode(text, add_special_tokens=False)]
        assert more[-1] == (text == "yes"), text
        assert not more[-1] or drawer.allowed(constraint)[EOS]


def test_lark(drawer: Drawer) -> None:
    grammar = 'start: term (("+" | "*") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/'
    for text in answers(drawer, StructuredOutputs(grammar=grammar), 3):
        assert isinstance(eval(text, {"__builtins__": {}}), int)  # digits, brackets, plus and times alone


def test_json_objects(drawer: Drawer) -> None:
    for text in answers(drawer, StructuredOutputs(json_object=True), 4):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("tag", "pattern"),
    [
        ({"format": {"type": "tag", "begin": "<x>", "content": JSON, "end": "</x>"}}, f"<x>{_OBJECT}</x>"),
        ({"format": {"type": "tag", "begin": "<x>", "content": {"type": "any_text"}, "end": "e"}}, "<x>[^e]*e"),
        ({"format": {"type": "tag", "begin": "<|user|>a", "content": JSON, "end": "<|end|>"}},
         rf"<\|user\|>a{_OBJECT}<\|end\|>"),
        ({"format": {"type": "tag", "begin": "", "content": {"type": "const_string", "value": "ä"}, "end": ["!", "?"]}},
         "ä[!?]"),
        ({"format": {"type": "tags_with_separator", "separator": "; ", "at_least_one": True, "tags": [
            {"begin": "<x>", "content": JSON, "end": "</x>"},
            {"type": "tag", "begin": "<y>", "content": {"type": "regex", "pattern": "[a-c/]{1,5}"}, "end": ""},
        ]}}, f"(<x>{_OBJECT}</x>|<y>[a-c/]{{1,5}})(; (<x>{_OBJECT}</x>|<y>[a-c/]{{1,5}}))*"),
        ({"format": {"type": "tags_with_separator", "separator": "", "stop_after_first": True, "tags": [
            {"begin": "<x>", "content": JSON, "end": "</x>"}]}}, f"(<x>{_OBJECT}</x>)?"),
        ({"format": {"type": "tag", "begin": "<", "end": "t", "content": {"type": "any_text", "excludes": ["e", "a"]}}},
         "<[^aet]*t"),
        ({"format": {"type": "sequence", "elements": [
            {"type": "optional", "content": {"type": "const_string", "value": "maybe "}},
            {"type": "or", "elements": [JSON, {"type": "grammar", "grammar": 'start: "g" A\nA: /[xyz]{3}/'}]},
        ]}}, f"(maybe )?({_OBJECT}|g[xyz]{{3}})"),
        ({"format": {"type": "triggered_tags", "triggers": ["e"], "at_least_one": True, "tags": [
            {"begin": "e<f>", "content": JSON, "end": "!"}, {"begin": "er", "content": JSON, "end": "!"}]}},
         f"([^e]*e(<f>|r){_OBJECT}!)+[^e]*"),
        ({"type": "structural_tag", "triggers": ["e"],
          "structures": [{"begin": "e=", "schema": ARGUMENTS, "end": "/"}]}, f"([^e]*e={_OBJECT}/)*[^e]*"),
        ({"format": {"type": "triggered_tags", "triggers": ["<|user|>"], "stop_after_first": True, "tags": [
            {"begin": "<|user|><f>", "content": JSON, "end": "!"}]}}, rf"((?!<\|user\|>).)*(<\|user\|><f>{_OBJECT}!)?"),
    ],
)  # fmt: skip
def test_structural_tags(tag: dict[str, object], pattern: str, drawer: Drawer) -> None:
    for text in answers(drawer, StructuredOutputs(structural_tag=tag), 5):
        assert re.fullmatch(pattern, text, re.DOTALL), text


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ({}, "format of structural_tag must be an object"),
        ({"format": {"type": "xml"}}, "format 'xml' is not supported: use one of const_string"),
        ({"format": {"type": []}}, "format [] is not supported"),
        ({"format": {"type": "or", "elements": [{"type": {}}]}}, "format {} is not supported"),
        ({"format": {"type": "any_text", "stop": ["a"]}}, "any_text has no field 'stop'"),
        ({"format": {"type": "const_string"}}, "value of const_string must be a string"),
        ({"format": {"type": "any_text", "excludes": [""]}}, "excludes must hold texts"),
        ({"format": {"type": "or", "elements": []}}, "elements is empty"),
        ({"format": {"type": "json_schema", "json_schema": {"not": {}}}}, "'not' at # is not supported"),
        ({"format": {"type": "regex", "pattern": "("}}, "cannot be compiled"),
        ({"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["<b"]}, "has no trigger"),
        ({"structures": [{"begin": "<a>", "schema": {}, "stop": ""}], "triggers": ["<a"]}, "no field 'stop'"),
        ({"structures": "x", "triggers": []}, "structures of structural_tag must be a list"),
    ],
)
def test_structural_tags_that_are_none(tag: dict[str, object], why: str, compiler: Compiler) -> None:
    with pytest.raises(RequestError) as raised:
        compiler.compile(StructuredOutputs(structural_tag=tag), ())
    assert why in str(raised.value)


def test_ends(drawer: Drawer, tokenizer: Tokenizer) -> None:
    """The request's stop ids, and no other end of a text, where the grammar may end."""
    a, b, stop = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("a", "b", "!"))
    constraint = drawer.compiler.compile(StructuredOutputs(regex="a(a|b!)*"), (stop,))
    assert not drawer.allowed(constraint)[[EOS, stop]].any()
    assert constraint.accept(a)
    assert drawer.allowed(constraint)[stop]
    assert not drawer.allowed(constraint)[EOS], "it is none of the request's"
    other = constraint.fork()
    assert not constraint.accept(stop)
    assert other.accept(b)
    assert drawer.allowed(other)[stop], "as text"
    assert other.accept(stop)
    assert not other.accept(stop)
    again = drawer.compiler.compile(StructuredOutputs(regex="ab"), (EOS,))
    assert again.accept(a)
    assert not again.accept(b), "nothing may follow"


def test_forks_go_their_own_ways(drawer: Drawer, tokenizer: Tokenizer) -> None:
    one = drawer.compiler.compile(StructuredOutputs(choice=("first", "second")), (EOS,))
    two = one.fork()
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in ("first", "second"))
    assert [one.accept(token) for token in first][-1] is False
    assert [two.accept(token) for token in second][-1] is False


def test_forced_tokens_are_those_of_the_tokenizer(drawer: Drawer, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"temperature": {"const": "very warm indeed"}},
        "required": ["temperature"],
    }
    form = StructuredOutputs(json=schema, disable_any_whitespace=True, disable_additional_properties=True)
    constraint = drawer.compiler.compile(form, (EOS,))
    tokens: list[int] = []
    while True:
        forced = constraint.forced() or [int(np.flatnonzero(drawer.allowed(constraint))[-1])]
        tokens += forced
        if not [constraint.accept(token) for token in forced][-1]:
            break
    text = '{"temperature":"very warm indeed"}'
    assert drawer.text(tokens) == text
    assert len(tokens) <= len(tokenizer.encode(text, add_special_tokens=False)) + 2


def test_a_token_that_does_not_fit_is_an_error(drawer: Drawer, tokenizer: Tokenizer) -> None:
    constraint = drawer.compiler.compile(StructuredOutputs(choice=("a",)), (EOS,))
    with pytest.raises(ConstraintError, match="cannot go on within its grammar"):
        constraint.accept(tokenizer.encode("zzz", add_special_tokens=False)[0])


def test_steps_that_cost_too_much_are_errors(drawer: Drawer) -> None:
    grammar = 'start: a\na: a a | a a a | "x" | ""'
    constraint = drawer.compiler.compile(StructuredOutputs(grammar=grammar), (EOS,))
    token = int(np.flatnonzero(drawer.allowed(constraint))[-1])
    with pytest.raises(ConstraintError, match="costs too much time for each token"):  # noqa: PT012 (one of them raises)
        for _ in range(3000):
            drawer.allowed(constraint)
            constraint.accept(token)


def test_a_machine_that_stands_still_is_not_the_grammars_fault() -> None:
    class Stalled:
        """A matcher of llguidance's on such a machine."""

        def consume_token(self, token: int) -> bool:
            time.sleep(0.3)
            return True

        def is_stopped(self) -> bool:
            return False

    constraint = Grammar(cast(LLMatcher, Stalled()), EOS, [EOS], [EOS])
    for _ in range(2):
        assert constraint.accept(1)
        assert constraint.overdrawn
    with pytest.raises(ConstraintError, match="costs too much time for each token"):
        constraint.accept(1)


def test_a_tokenizer_that_cannot_be_read_refuses_the_request():
    def load() -> Tokenizer:
        raise KeyError("vocab")

    with pytest.raises(RequestError, match=r"cannot be told from its tokenizer .*vocab"):
        Compiler(load, 100, [EOS]).compile(StructuredOutputs(choice=("a", "b")), [EOS])
