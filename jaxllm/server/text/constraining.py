"""What form the answer to a chat has: what the request asks for, as the model writes thoughts, calls and answers."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.errors import RequestError
from jaxllm.server.text import reasoning, tools
from jaxllm.server.text.answer import HARMONY_REASONING, HARMONY_TOOLS, AnswerFormat
from jaxllm.server.text.harmony import Harmony
from jaxllm.server.text.tools.written import Format, either, text
from jaxllm.structured_outputs import StructuredOutputs

GENERIC_TOOLS = "json"
"""The parser of calls that have to be made where the model's own form of calls is not known."""


def constrain(
    form: AnswerFormat,
    asked: StructuredOutputs | None,
    *,
    may_call: Sequence[Mapping[str, Any]] = (),
    must_call: Sequence[Mapping[str, Any]] = (),
    several: bool = True,
    prompt: str = "",
    continued: str | None = None,
) -> StructuredOutputs | None:
    """What the whole answer has to fit; None where it is free.

    asked: what its content has to fit. may_call, must_call: tools that it may call in place of a content, or that it
    has to. several: more than one call. prompt, continued: as an AnswerReader's.

    Raises RequestError where that cannot be: a grammar cannot make sure of the calls, or two things are asked for.
    """
    if must_call and asked is not None:
        raise RequestError(
            "structured_outputs: say what a content has to be, and tool_choice asks for calls alone: leave one out",
            "structured_outputs",
        )
    if asked is None and not must_call:
        return None
    harmony = HARMONY_TOOLS in (form.tools, form.reasoning) or form.reasoning == HARMONY_REASONING
    if must_call:
        whole = _as_tag(_calls(form, must_call, several))
    else:
        assert asked is not None
        whole = asked
        calls = _calls(form, may_call, several) if may_call and form.tools is not None else None
        if calls is not None or (harmony and continued is None):
            content = as_format(asked)
            content = Harmony.written_content(content) if harmony else content
            whole = _as_tag(either([content, calls] if calls is not None else [content]))
    if harmony:
        if continued is not None:
            return whole
        assert isinstance(whole.structural_tag, str)
        return _as_tag(Harmony.written_turn(json.loads(whole.structural_tag)["format"]))
    if form.reasoning is None or whole.thinking_ends:
        return whole
    starts, ends = reasoning.PARSERS[form.reasoning](prompt, continued).marks()
    return dataclasses.replace(whole, thinking_starts=starts, thinking_ends=ends)


def as_format(form: StructuredOutputs) -> Format:
    """The same as a format of structural tags. Raises RequestError."""
    if form.whitespace_pattern is not None or form.disable_any_whitespace or form.disable_additional_properties:
        raise RequestError(
            "structured_outputs: whitespace_pattern, disable_any_whitespace and disable_additional_properties are "
            "not for answers that may also call tools, or come on channels; leave them out",
            "structured_outputs",
        )
    match form:
        case StructuredOutputs(json=str(schema)):
            return {"type": "json_schema", "json_schema": json.loads(schema)}
        case StructuredOutputs(json_object=True):
            return {"type": "json_schema", "json_schema": {"type": "object"}}
        case StructuredOutputs(regex=str(pattern)):
            return {"type": "regex", "pattern": pattern}
        case StructuredOutputs(choice=tuple(choices)):
            return either([text(choice) for choice in choices])
        case StructuredOutputs(grammar=str(grammar)):
            return {"type": "grammar", "grammar": grammar}
    assert isinstance(form.structural_tag, str)
    tag = json.loads(form.structural_tag)
    if "format" not in tag:
        raise RequestError(
            "structured_outputs: structural_tag: of its forms the one with 'format' is for answers that may also call "
            "tools, or come on channels",
            "structured_outputs",
        )
    inner: Format = tag["format"]
    return inner


def _as_tag(form: Format) -> StructuredOutputs:
    return StructuredOutputs(structural_tag={"format": form})


def _calls(form: AnswerFormat, offered: Sequence[Mapping[str, Any]], several: bool) -> Format:
    """How the model writes calls of these."""
    name = form.tools or GENERIC_TOOLS
    parser = Harmony if name == HARMONY_TOOLS else tools.PARSERS[name]
    return parser.written([tool["function"] for tool in offered], several)
