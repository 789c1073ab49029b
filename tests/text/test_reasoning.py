"""Parsers of reasoning: where it begins and ends, by the answer and by the prompt that it follows."""

import re

import pytest
from answers import NOW, Answer, read, same
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.server.text.answer import REASONING_PARSERS, AnswerFormat, AnswerReader

THINKING = ("deepseek_v3", "glm45", "qwen3", "think_tags", "kimi_k2")
PROMPT = "<|im_start|>assistant\n"
CASES: list[tuple[str, str, str, str, str]] = [
    *((name, PROMPT, "<think>\nHm, 2 < 3.\n\nSo.\n</think>\n\nYes.", "Hm, 2 < 3.\n\nSo.", "Yes.") for name in THINKING),
    *((name, PROMPT + "<think>\n", "Hm.\n</think>\n\nYes.", "Hm.", "Yes.") for name in (*THINKING, "deepseek_r1")),
    *((name, PROMPT + "<think>\n\n</think>\n\n", " Yes. <think>", "", " Yes. <think>") for name in THINKING),
    *((name, PROMPT, "No tag.\n", "", "No tag.\n") for name in THINKING),
    *((name, PROMPT, " A later <think> is</think>.", "", " A later <think> is</think>.") for name in THINKING),
    *((name, PROMPT, "<think>Cut off </th", "Cut off </th", "") for name in THINKING),
    *((name, PROMPT, "\n <thin", "", "\n <thin") for name in THINKING),
    *((name, PROMPT + "<think>", "<think>\nTwice.</think>Yes.", "Twice.", "Yes.") for name in THINKING),
    ("deepseek_r1", PROMPT, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
    ("deepseek_r1", PROMPT, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
    ("deepseek_r1", PROMPT, "Never closed.", "Never closed.", ""),
    ("deepseek_r1", PROMPT + "</think>", "Yes.", "", "Yes."),
    ("mistral", PROMPT, "[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes."),
    ("seed_oss", PROMPT, "<seed:think>Hm.</seed:think>Yes.", "Hm.", "Yes."),
    ("granite", PROMPT, "Here is my thought process: Hm.\n\nHere is my response: Yes.", "Hm.", "Yes."),
    ("granite", PROMPT, "Here's my thought process: Hm. Here's my response: Yes.", "Hm.", "Yes."),
    ("granite", PROMPT, "<think>Hm.</think><response>Yes.</response>", "Hm.", "Yes."),
    ("granite", PROMPT, "Here is the answer.", "", "Here is the answer."),
    ("openai_gptoss", PROMPT, "<|channel|>analysis<|message|>Hm.<|end|>"
     "<|start|>assistant<|channel|>final<|message|>Yes.", "Hm.", "Yes."),
    ("openai_gptoss", PROMPT, "<|channel|>analysis<|message|>A.<|end|>"
     "<|start|>assistant<|channel|>analysis<|message|>B.", "A.\nB.", ""),
    ("openai_gptoss", PROMPT, "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final"
     "<|message|>Yes.<|return|>", "", "I look.\nYes."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "prompt", "text", "reasoning", "content"), CASES)
def test_answers(name: str, prompt: str, text: str, reasoning: str, content: str) -> None:
    expected = Answer(content=content, reasoning=reasoning)
    assert read([text], reasoning=name, prompt=prompt, offered=[]) == expected
    assert read(text, reasoning=name, prompt=prompt, offered=[]) == expected
    for cut in range(len(text)):
        assert read([text[:cut], text[cut:]], reasoning=name, prompt=prompt, offered=[]) == expected


@pytest.mark.parametrize(("name", "prompt", "text", "reasoning", "content"), CASES)
def test_the_reader_says_when_it_reads_reasoning(
    name: str, prompt: str, text: str, reasoning: str, content: str
) -> None:
    reader = AnswerReader(AnswerFormat(reasoning=name), prompt=prompt)
    counted = ""
    for character in text:
        before = reader.reasons
        assert reader.may_reason or not before
        reader.feed(character)
        if before or reader.reasons:
            counted += character
    assert all(line.strip() in counted for line in reasoning.splitlines())
    assert len(counted) <= len(text) - len(content)
    assert bool(counted) == bool(reasoning)


def test_every_parser_is_tried() -> None:
    assert {case[0] for case in CASES} == set(REASONING_PARSERS)


@pytest.mark.parametrize(
    ("continued", "reasoning", "content"),
    [
        ("Hello, I", "", " am here.</think> x"),
        ("<think>Well", "am here.", "x"),
        ("<think>Well</think>", "", " am here.</think> x"),
    ],
)
def test_going_on_with_an_answer(continued: str, reasoning: str, content: str) -> None:
    for name in ("qwen3", "deepseek_r1"):
        prompt = f"<think> is a tag. {continued}"
        answer = read([" am here.</think> x"], reasoning=name, prompt=prompt, continued=continued, offered=[])
        assert (answer.reasoning, answer.content) == (reasoning, content)
    answer = read([" am here.<|return|>"], reasoning="openai_gptoss", continued="Hello, I", offered=[])
    assert (answer.reasoning, answer.content) == ("", " am here.")


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT + "<think>\n"])
def test_calls_behind_reasoning(prompt: str) -> None:
    begun = "" if prompt.endswith("<think>\n") else "<think>"
    call = '<tool_call>{"name": "now"}</tool_call>'
    text = f"{begun}Shall I write {call}?</think>\n\n{call}"
    for pieces in ([text], text):
        answer = read(pieces, "hermes", "qwen3", prompt=prompt)
        assert answer.reasoning == f"Shall I write {call}?"
        assert (answer.content, answer.parsed) == ("", [NOW])


def test_calls_that_end_reasoning() -> None:
    call = "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    text = f"<think>Hm. <|tool_calls_section_begin|>{call}<|tool_calls_section_end|>"
    answer = read(text, "kimi_k2", "kimi_k2", prompt=PROMPT)
    assert (answer.reasoning, answer.content, answer.parsed) == ("Hm.", "", [NOW])


HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.now "
    "<|constrain|>json<|message|>{}<|call|>"
)


def test_the_halves_of_harmony() -> None:
    answer = read(HARMONY, "openai", "openai_gptoss")
    assert (answer.content, answer.reasoning, answer.parsed) == ("", "Hm.", [NOW])
    answer = read(HARMONY, None, "openai_gptoss")
    assert (answer.content, answer.reasoning, answer.calls) == ("{}", "Hm.", [])
    answer = read(HARMONY, "openai")
    assert (answer.content, answer.reasoning, answer.parsed) == ("Hm.", "", [NOW])


PARTS = st.sampled_from([
    "<think>", "</think>", "[THINK]", "[/THINK]", "Here is my thought process:", "Here is my response:", "<response>",
    "</response>", "<|channel|>", "analysis", "final", "<|message|>", "<|end|>", "<|start|>", " to=now", "{}", " ",
    "\n", "é", "<", "Here", "text",
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(PARTS, max_size=16), cuts=st.lists(st.integers(0, 200), max_size=5), opened=st.booleans())
@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "granite", "mistral", "openai_gptoss", "kimi_k2"])
def test_anything_made_of_the_parts(name: str, parts: list[str], cuts: list[int], opened: bool) -> None:
    text = "".join(parts)
    cuts = sorted(min(cut, len(text)) for cut in cuts)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    prompt = PROMPT + "<think>" * opened
    whole = read([text], reasoning=name, prompt=prompt, offered=[])
    assert same(read(pieces, reasoning=name, prompt=prompt, offered=[]), whole)
    assert same(read(text, reasoning=name, prompt=prompt, offered=[]), whole)
    # Every word is in one part or the other.
    kept = re.findall("é|text", text)
    if name != "openai_gptoss":  # whose headers may swallow words
        assert re.findall("é|text", whole.reasoning + whole.content) == kept
