"""Parsers of tool calls: real transcripts whole and in pieces, broken ones, and what nobody would write."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from answers import BROKEN, NOW, TOOLS, TRANSCRIPTS, WEATHER, Answer, read, same, tool
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from jaxllm.core import SamplingParams
from jaxllm.server.text import AnswerFormat, AnswerReader, TextStream, Tokenizer
from jaxllm.server.text.answer import TOOL_PARSERS
from jaxllm.server.text.tools.literals import python_to_json
from jaxllm.server.text.tools.schemas import schema_types

VERBATIM = ("hermes", "llama3_json", "mistral", "deepseek_v3", "deepseek_v31", "kimi_k2", "granite", "jamba", "openai")
"""Parsers that hand on the arguments as they are written."""
CASES = [(name, *case) for name, cases in TRANSCRIPTS.items() for case in cases]
TEXTS = [(name, case[0]) for table in (TRANSCRIPTS, BROKEN) for name, cases in table.items() for case in cases]


def test_every_parser_is_tried() -> None:
    assert {*TRANSCRIPTS, "llama4_json"} == set(TOOL_PARSERS)  # that one is llama3_json's


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_transcripts(name: str, text: str, content: str, calls: list) -> None:
    answer = read([text], name)
    assert answer.content == content
    assert answer.parsed == calls
    assert answer.reasoning == ""
    assert len(set(answer.ids)) == len(answer.ids)


@pytest.mark.parametrize(("name", "text"), [(name, *case[:1]) for name, cases in BROKEN.items() for case in cases])
def test_broken_calls_stay_text(name: str, text: str) -> None:
    assert read([text], name) == Answer(content=text)


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_pieces_join_to_the_whole(name: str, text: str) -> None:
    whole = read([text], name)
    assert same(read(text, name), whole)
    for cut in range(len(text)):
        assert same(read([text[:cut], text[cut:]], name), whole), cut


@pytest.mark.parametrize(("name", "text"), TEXTS)
def test_every_beginning_of_an_answer_is_read(name: str, text: str) -> None:
    """Whatever max_tokens leaves of it: nothing raises, pieces join to the whole, begun arguments go on alike."""
    calls = read([text], name).calls
    for end in range(len(text)):
        answer = read([text[:end]], name)
        assert same(read(text[:end], name), answer), end
        for (begun, arguments), (called, whole) in zip(answer.calls, calls, strict=False):
            assert begun == called
            assert name not in VERBATIM or whole.startswith(arguments)


MARKS = {
    name: sorted({mark for case in cases for mark in re.findall(r"<[^<>\s]*>|\[[A-Z_]+\]|[^\s<>]{1,8}", case[0])})
    for name, cases in TRANSCRIPTS.items()
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_anything_made_of_a_formats_parts(name: str, data: st.DataObject) -> None:
    """In any order and cut anywhere: no exception, and nothing depends on the cuts."""
    parts = st.sampled_from(MARKS[name]) | st.sampled_from([" ", "\n", '"', "{", "}", "[", "]", "\\", "now", "é", ", "])
    text = "".join(data.draw(st.lists(parts, max_size=24)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert same(read(pieces, name), read([text], name))
    assert same(read(text, name), read([text], name))


@settings(max_examples=60, deadline=None)
@given(text=st.text(), cut=st.integers(0, 50))
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_text_without_calls_is_content(name: str, text: str, cut: int) -> None:
    text = re.sub(r"[<\[{]|functools|to=", "", text)
    assert read([text[:cut], text[cut:]], name) == Answer(content=text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(st.text(min_size=1), JSON, max_size=3), ascii_only=st.booleans())
def test_json_arguments_of_any_kind(arguments: dict, ascii_only: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii_only)
    for name, text in (
        ("hermes", f'<tool_call>\n{{"name": "now", "arguments": {written}}}\n</tool_call>'),
        ("mistral", f"[TOOL_CALLS]now[ARGS]{written}"),
        ("deepseek_v31", f"<｜tool▁call▁begin｜>now<｜tool▁sep｜>{written}<｜tool▁call▁end｜>"),
        ("openai", f"<|channel|>commentary to=functions.now<|message|>{written}<|call|>"),
    ):
        answer = read(text, name)
        assert answer.calls == [("now", written)]
        assert answer.content == ""


@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), JSON, max_size=3))
def test_python_arguments_of_any_kind(arguments: dict) -> None:
    text = f"[now({', '.join(f'{name}={value!r}' for name, value in arguments.items())})]"
    answer = read(text, "pythonic")
    assert answer.parsed == [("now", arguments)]
    assert answer.content == ""


@settings(max_examples=60, deadline=None)
@given(value=JSON)
def test_python_literals(value: object) -> None:
    written = python_to_json(repr(value))
    assert written is not None
    assert json.loads(written) == value


def test_long_numbers_are_read() -> None:
    third = "0." + "3" * 5000
    assert json.loads(python_to_json(third) or "") == float(third)
    assert python_to_json("-" + "7" * 4000) == "-" + "7" * 4000


@pytest.mark.parametrize(
    "text", ["", "x", "[1", "{1}", "{'a' 1}", "[" * 100 + "]" * 100, "1e999", "'\\x4", "1 2", "nan"]
)
def test_what_is_no_python_literal(text: str) -> None:
    assert python_to_json(text) is None


@pytest.mark.parametrize(
    ("schema", "value", "meaning"),
    [
        ({"type": "integer"}, "5", 5),
        ({"type": "number"}, " 5.5 ", 5.5),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),  # more than Python reads: kept as text
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "maybe", "maybe"),
        ({"type": "null"}, "None", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "nil", "nil"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "7", 7),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "seven", "seven"),
        ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        ({"type": "object"}, "{'a': (1, None)}", {"a": [1, None]}),
        ({"type": "object"}, "{'a'", "{'a'"),
        ({"enum": ["a", "b"]}, "a", "a"),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": "5"}, "5", "5"),
        ({"$ref": "#/$defs/count"}, "6", 6),
        ({"$ref": "#/$defs/loop"}, "6", 6),
        ({}, "[1, 2]", [1, 2]),
        ({}, "plain", "plain"),
        (True, "3", 3),
        ({"type": "string"}, "3", "3"),
    ],
)
def test_typed_arguments(schema: object, value: str, meaning: object) -> None:
    offered = tool("f", a=schema)
    offered["function"]["parameters"]["$defs"] = {"count": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}
    for name, text in (
        ("qwen3_coder", f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"),
        ("glm45", f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value>\n</tool_call>"),
    ):
        assert read(text, name, offered=[offered]).parsed == [("f", {"a": meaning})]


def test_types_of_schemas_that_are_none() -> None:
    for schema in (None, 3, {"type": 3}, {"anyOf": 3}, {"$ref": 3}, {"$ref": "#/x/y"}, {"enum": 3}):
        assert schema_types({}, schema) == set()


def test_arguments_of_functions_that_were_not_offered() -> None:
    text = "<tool_call><function=other><parameter=a>5</parameter><parameter=b>x y</parameter></function></tool_call>"
    assert read(text, "qwen3_coder").parsed == [("other", {"a": 5, "b": "x y"})]


@pytest.mark.parametrize(("name", "tag"), [("qwen3_coder", "tool_call"), ("seed_oss", "seed:tool_call")])
def test_a_parameter_that_is_not_closed_ends_where_the_next_one_begins(name: str, tag: str) -> None:
    text = f"<{tag}>\n<function=send>\n<parameter=text>\nHe <b>\n<parameter=to>\nher\n</function>\n</{tag}>"
    assert read(text, name).parsed == [("send", {"text": "He <b>", "to": "her"})]
    text = (
        f"<{tag}>\n<function=send>\n<parameter=text>\n<f>\n</function>\n</f>\n</parameter>\n</function>\n</{tag}> Sent."
    )
    assert read(text, name).parsed == [("send", {"text": "<f>\n</function>\n</f>"})], "a value may hold such a line"
    assert read(text, name).content == "Sent."


def test_strings_stream_as_they_come() -> None:
    reader = AnswerReader(AnswerFormat("qwen3_coder"), TOOLS)
    reader.feed("<tool_call>\n<function=send>\n<parameter=text>\n")
    assert reader.feed('He said "').calls[0].arguments == 'He said \\"'
    assert reader.feed("no\n").calls[0].arguments == "no"  # the line break may belong to the tag
    assert reader.feed("way").calls[0].arguments == "\\nway"
    reader = AnswerReader(AnswerFormat("hermes"), TOOLS)
    first = reader.feed('<tool_call>{"name": "send", "arguments": {"text": "He')
    assert [(call.index, call.name, call.arguments) for call in first.calls] == [(0, "send", '{"text": "He')]
    assert first.calls[0].id.startswith("call_")
    (second,) = reader.feed(" said").calls
    assert (second.index, second.id, second.name, second.arguments) == (0, "", "", " said")


def test_content_does_not_wait() -> None:
    reader = AnswerReader(AnswerFormat("hermes"), TOOLS)
    assert reader.feed("Hello").content == "Hello"
    assert reader.feed(" there <").content == " there"
    assert reader.feed("b>").content == " <b>"


def test_a_call_that_breaks_off_keeps_what_came() -> None:
    answer = read(['<tool_call>{"name": "send", "arguments": {"text": "x" <oops>}}</tool_call> and on'], "hermes")
    assert answer.calls == [("send", '{"text": "x" ')]
    assert answer.content == "<oops>}} and on"


def test_an_answer_cut_off_in_the_end_of_a_call() -> None:
    text = '<tool_call>{"name": "now"}\n</tool_'
    assert read([text], "hermes").content == ""
    assert read(text, "hermes").content == ""
    assert read([text + "x"], "hermes").content == "</tool_x"
    reader = AnswerReader(AnswerFormat("hermes"), TOOLS)
    assert reader.feed(text, final=True).content == ""


def test_a_call_behind_a_broken_one() -> None:
    good = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    answer = read([f"<tool_call>bad {good}"], "hermes")
    assert (answer.content, answer.parsed) == ("<tool_call>bad", [NOW])
    answer = read(['[TOOL_CALLS][{"name": "now", "arguments": {}}, nonsense] [TOOL_CALLS]now[ARGS]{}'], "mistral")
    assert (answer.content, answer.parsed) == (", nonsense]", [NOW, NOW])


def test_ids() -> None:
    text = "".join("[TOOL_CALLS]now[ARGS]{}" for _ in range(20))
    ids = read([text], "mistral").ids
    assert all(re.fullmatch(r"[a-zA-Z0-9]{9}", each) for each in ids)
    assert len(set(ids)) == 20
    assert read(["[TOOL_CALLS]now[CALL_ID]abcDEF123[ARGS]{}"], "mistral").ids == ["abcDEF123"]
    kimi = "<|tool_call_begin|>functions.now:7<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert read([kimi], "kimi_k2").ids == ["functions.now:7"]


def test_one_call_alone() -> None:
    text = '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "send"}</tool_call>'
    assert read(text, "hermes", parallel=False).parsed == [NOW]


def test_without_tools_nothing_is_a_call() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>'
    assert read([text], "hermes", offered=[]) == Answer(content=text)


def test_many_marks_cost_no_more_than_their_length() -> None:
    for name, text in (
        ("hermes", '<tool_call>{"' * 4_000),
        ("hermes", '<tool_call>{"arguments": [' * 4_000),
        ("llama3_json", "{" * 10_000),
        ("pythonic", "[" * 10_000),
        ("pythonic", "[now(a=" + "[" * 10_000),
        ("hermes", '<tool_call>{"name": "now", "arguments": ' + '{"a": ' * 10_000),
        ("openai", "<|channel|>" * 2_000),
        ("qwen3_coder", "<function=now><parameter=" * 2_000),
    ):
        assert len(read([text], name).text) > len(text) / 4


@pytest.mark.parametrize("skip", [True, False])
def test_through_a_real_tokenizer(skip: bool, load_tokenizer: Callable[[str], Tokenizer]) -> None:
    """Its tags are tokens of their own; others of that kind stay out of the text."""
    tokenizer = load_tokenizer("qwen3-8b")
    text = (
        "<think>\nWeather é 😀.\n</think>\n\nI look.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
    )
    ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
    reader = AnswerReader(AnswerFormat("hermes", "qwen3"), TOOLS)
    stream = TextStream(tokenizer, SamplingParams(skip_special_tokens=skip), reader.special_tokens)
    pieces = [stream.feed([token], token == ids[-1])[0] for token in ids]
    answer = read(pieces, "hermes", "qwen3")
    assert answer.reasoning == "Weather é 😀."
    assert answer.content == ("I look." if skip else "I look.\n<|im_end|>")
    assert answer.parsed == [WEATHER]


def test_special_tokens_that_a_format_needs_stay(tokenizer_directory: Callable[[str], Path]) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer_directory("stories260K"))
    fast.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]", "[INST]"]})
    tokenizer = Tokenizer(fast)
    ids = tokenizer.encode("Sure[INST][TOOL_CALLS]now[ARGS]{}</s>", add_special_tokens=False)
    for parser, calls in (("mistral", [NOW]), ("hermes", [])):
        keep = AnswerReader(AnswerFormat(parser), TOOLS).special_tokens
        text, _ = TextStream(tokenizer, SamplingParams(), keep).feed(ids, True)
        assert "INST" not in text
        assert read([text], parser).parsed == calls


@pytest.mark.parametrize("pieces", [1, 100])
def test_text_that_could_begin_a_closer_is_content_where_white_space_follows(pieces: int) -> None:
    call = '<tool_call>{"name": "send", "arguments": {}}</tool_call>'
    for end in ("<\n\n", "</tool ", "<"):
        text = call + end
        answer = read([text] if pieces == 1 else list(text), "hermes")
        assert answer.calls == [("send", "{}")]
        assert answer.content.strip() == ("" if end == "<" else end.strip())
