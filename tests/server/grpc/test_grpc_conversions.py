"""Wire messages to plain data and back."""

import dataclasses
import json
import math

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.core import Delta, FinishReason, Load, Logprobs, SamplingParams
from jaxllm.errors import EngineDeadError, QueueFullError, RequestError
from jaxllm.server.grpc import conversions
from jaxllm.server.grpc.conversions import CallError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.text import Tokenizer
from jaxllm.structured_outputs import StructuredOutputs

UNKNOWN_77 = b"\xe8\x04\x01"  # field 77, varint 1


def test_unset_sampling_takes_the_checkpoints_defaults_then_the_engines() -> None:
    params = conversions.sampling_params(pb.Sampling(), {"temperature": 0.6, "top_k": 20, "do_sample": 1})
    assert params == SamplingParams(max_tokens=None, temperature=0.6, top_k=20)


def test_set_sampling_fields_win_zeros_included() -> None:
    wire = pb.Sampling(temperature=0.0, top_k=0, max_tokens=3, stop=["a"], stop_token_ids=[5], ignore_eos=True)
    params = conversions.sampling_params(wire, {"temperature": 0.6, "top_k": 20})
    assert params == SamplingParams(
        max_tokens=3, temperature=0.0, top_k=0, stop=("a",), stop_token_ids=(5,), ignore_eos=True
    )


def test_every_sampling_field_arrives() -> None:
    wire = pb.Sampling(
        max_tokens=9, min_tokens=2, temperature=0.7, top_k=-1, top_p=0.9, min_p=0.05, repetition_penalty=1.1,
        frequency_penalty=-0.3, presence_penalty=0.2, seed=2**62, stop=["x", "y"], stop_token_ids=[1, 2],
        ignore_eos=True, include_stop_str_in_output=True, skip_special_tokens=False, logprobs=0, prompt_logprobs=4,
        detokenize=True, n=2, best_of=4, use_beam_search=True, length_penalty=0.9,
        early_stopping=pb.EARLY_STOPPING_NEVER,
        logit_bias={7: -1.1}, bad_words=["bad"], bad_words_ids=[{"ids": [3, 4]}], allowed_token_ids={"ids": [5, 6]},
        thinking_token_budget=0, thinking_token_ids={"ids": [8, 9]}, truncate_prompt_tokens=-1, echo=True,
        logits_processors={"own": '{"a": [1, 2.5, null]}'},
        structured_outputs=pb.StructuredOutputs(
            json='{"type": "string"}', disable_any_whitespace=True, thinking_ends=["</think>"]
        ),
    )  # fmt: skip
    assert {field.name for field, _ in wire.ListFields()} == {field.name for field in pb.Sampling.DESCRIPTOR.fields}
    assert {field.name for field, _ in wire.ListFields()} == {
        field.name for field in dataclasses.fields(SamplingParams)
    }
    conversions.reject_unknown_fields(wire)
    with pytest.raises(RequestError, match="not with use_beam_search"):
        conversions.sampling_params(wire, {})
    wire.use_beam_search = False
    assert conversions.sampling_params(wire, {}) == SamplingParams(
        max_tokens=9, min_tokens=2, temperature=0.7, top_k=0, top_p=0.9, min_p=0.05, repetition_penalty=1.1,
        frequency_penalty=-0.3, presence_penalty=0.2, seed=2**62, stop=("x", "y"), stop_token_ids=(1, 2),
        ignore_eos=True, include_stop_str_in_output=True, skip_special_tokens=False, logprobs=0, prompt_logprobs=4,
        detokenize=True, n=2, best_of=4, length_penalty=0.9, early_stopping="never", logit_bias={7: -1.1},
        bad_words=("bad",), bad_words_ids=((3, 4),), allowed_token_ids=(5, 6), thinking_token_budget=0,
        thinking_token_ids=(8, 9), truncate_prompt_tokens=-1, echo=True,
        logits_processors={"own": {"a": [1, 2.5, None]}},
        structured_outputs=StructuredOutputs(
            json={"type": "string"}, disable_any_whitespace=True, thinking_ends=("</think>",)
        ),
    )  # fmt: skip


def test_beam_search_takes_no_defaults_of_drawing() -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 7, "stop_token_ids": [5]}
    params = conversions.sampling_params(pb.Sampling(use_beam_search=True, n=3), defaults)
    assert (params.use_beam_search, params.temperature, params.top_p) == (True, 1.0, 1.0)
    assert (params.max_tokens, list(params.stop_token_ids)) == (7, [5])
    with pytest.raises(RequestError, match=r"top_p=0\.5: not with use_beam_search"):
        conversions.sampling_params(pb.Sampling(use_beam_search=True, top_p=0.5), defaults)


def test_arguments_of_logits_processors_are_json() -> None:
    with pytest.raises(RequestError, match="logits_processors: own: no JSON"):
        conversions.sampling_params(pb.Sampling(logits_processors={"own": "{"}), {})


@pytest.mark.parametrize("form", [
    StructuredOutputs(json='{"b": 1, "a": 2, "type": "object"}', whitespace_pattern=" ?"),
    StructuredOutputs(json_object=True, disable_any_whitespace=True),
    StructuredOutputs(regex="a+"),
    StructuredOutputs(choice=("a", "ä")),
    StructuredOutputs(grammar='start: "a"'),
    StructuredOutputs(structural_tag={"format": {"type": "any_text"}}),
])  # fmt: skip
def test_structured_outputs_arrive(form: StructuredOutputs) -> None:
    given = {name: value for name, value in dataclasses.asdict(form).items() if value is not None}
    wire = pb.Sampling(structured_outputs=pb.StructuredOutputs(**given))
    assert conversions.sampling_params(wire, {}).structured_outputs == form


def test_structured_outputs_over_the_wire_are_of_one_form() -> None:
    with pytest.raises(RequestError, match="regex and choice are set together"):
        conversions.sampling_params(pb.Sampling(structured_outputs={"regex": "a", "choice": ["b"]}), {})


@given(st.decimals(min_value=-2, max_value=2, places=4))
def test_a_float32_field_gives_back_the_decimal_that_was_written(decimal) -> None:
    wire = pb.Sampling.FromString(pb.Sampling(temperature=float(decimal)).SerializeToString())
    assert conversions.shortest(wire.temperature) == float(decimal)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_refused(value: float) -> None:
    with pytest.raises(RequestError, match=r"temperature=.*must be a finite number") as raised:
        conversions.sampling_params(pb.Sampling(temperature=value), {})
    assert raised.value.param == "temperature"


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (pb.GenerateRequest.FromString(UNKNOWN_77), "GenerateRequest"),
        (pb.GenerateRequest(sampling=pb.Sampling.FromString(UNKNOWN_77)), "Sampling"),
        (pb.GenerateRequest(chat=pb.Chat(messages=[{}, pb.ChatMessage.FromString(UNKNOWN_77)])), "ChatMessage"),
        (pb.SessionRequest(generate=pb.GenerateRequest.FromString(UNKNOWN_77)), "GenerateRequest"),
    ],
)
def test_unknown_fields_are_named(message, name: str) -> None:
    with pytest.raises(RequestError, match=rf"^{name} has no field number 77: "):
        conversions.reject_unknown_fields(message)


def test_known_fields_are_no_unknown_ones() -> None:
    request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user")]), sampling=pb.Sampling(top_k=1))
    request.chat.template_kwargs.update({"a": {"b": [1, None]}})
    conversions.reject_unknown_fields(request)


def test_chat_messages() -> None:
    chat = pb.Chat(
        messages=[pb.ChatMessage(role="user", content="a", name="n"), pb.ChatMessage(role="assistant", content="b")],
        continue_final_message=True,
    )
    chat.template_kwargs.update({"thinking": False, "budget": 3, "words": ["x"]})
    read = conversions.Conversation.read(chat)
    assert read.messages == [{"role": "user", "content": "a", "name": "n"}, {"role": "assistant", "content": "b"}]
    assert read.keywords == {"thinking": False, "budget": 3, "words": ["x"], "continue_final_message": True}
    assert (read.continued, read.tools, read.must_call, read.parallel) == ("b", [], [], True)


@pytest.mark.parametrize("name", ["messages", "tools", "documents"])
def test_template_kwargs_cannot_replace_a_field(name: str) -> None:
    chat = pb.Chat()
    chat.template_kwargs.update({name: []})
    with pytest.raises(RequestError, match=f"must not hold '{name}'"):
        conversions.Conversation.read(chat)


def function(name: str, **more: object) -> str:
    return json.dumps({"type": "function", "function": {"name": name, **more}})


def test_tools_documents_and_messages_of_every_kind() -> None:
    call = pb.ToolCall(id="c1", name="f", arguments='{"b": 1, "a": 2}')
    chat = pb.Chat(
        messages=[
            pb.ChatMessage(role="user", parts=[{"text": "x"}, {"text": "y"}]),
            pb.ChatMessage(role="assistant", reasoning="hm", tool_calls=[call]),
            pb.ChatMessage(role="tool", content="3", tool_call_id="c1"),
        ],
        tools=[function("f", parameters={"type": "object", "properties": {"z": {}, "a": {}}})],
        documents=['{"title": "t", "text": "d"}'],
        parallel_tool_calls=False,
    )
    read = conversions.Conversation.read(chat)
    assert read.messages == [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    assert read.keywords["documents"] == [{"title": "t", "text": "d"}]
    assert read.keywords["tools"] is read.tools
    assert list(read.tools[0]["function"]["parameters"]["properties"]) == ["z", "a"]
    assert not read.parallel


@pytest.mark.parametrize(
    ("choice", "offered", "must_call", "several"),
    [
        (pb.ToolChoice(), ["f", "g"], [], True),
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE), [], [], True),
        (pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED), ["f", "g"], ["f", "g"], True),
        (pb.ToolChoice(function="g"), ["f", "g"], ["g"], False),
    ],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_tool_choice(
    choice: pb.ToolChoice, offered: list[str], must_call: list[str], several: bool, parallel: bool
) -> None:
    chat = pb.Chat(tools=[function("f"), function("g")], tool_choice=choice, parallel_tool_calls=parallel)
    read = conversions.Conversation.read(chat)
    assert [tool["function"]["name"] for tool in read.tools] == offered
    assert ("tools" in read.keywords) == bool(offered)
    assert [tool["function"]["name"] for tool in read.must_call] == must_call
    assert read.several == (several and parallel)


@pytest.mark.parametrize(
    ("tools", "choice", "why"),
    [
        (["no"], {}, r"tools\[0\]: no JSON"),
        (["[]"], {}, r"tools\[0\]: must be a JSON object"),
        (['{"type": "custom"}'], {}, r"tools\[0\]: must be .*function"),
        ([function("f", description="\ud800")], {}, "half of a surrogate pair"),
        (['{"type": "function", "function": {}}'], {}, r"tools\[0\].function.name=None"),
        (['{"type": "function", "function": {"name": "\\ud800"}}'], {}, r"tools\[0\]: holds half"),
        ([function("f"), function("f")], {}, "two functions of the name 'f'"),
        ([function("f", parameters=3)], {}, "must be a JSON schema"),
        ([function("f")], {"function": "g"}, "'g', which is none of the tools"),
        ([function("f")], {"function": ""}, "'', which is none of the tools"),
        ([function("f")], {"mode": 7}, "tool_choice.mode=7"),
        ([], {"mode": pb.ToolChoice.MODE_REQUIRED}, "tool_choice without tools"),
    ],
)
def test_tools_that_are_none(tools: list[str], choice: dict, why: str) -> None:
    with pytest.raises(RequestError, match=why) as raised:
        conversions.Conversation.read(pb.Chat(tools=tools, tool_choice=choice))
    assert raised.value.param in ("tools", "tool_choice")


def test_the_size_of_a_conversation_is_that_of_all_it_holds() -> None:
    long = "x" * 5000
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=long)], documents=[json.dumps({"text": long})])
    chat.tools.append(function("f", description=long))
    chat.template_kwargs.update({"a": long})
    assert 20_000 < conversions.Conversation.read(chat).size < 21_000


def test_numbers_of_a_template_are_whole_where_they_can_be() -> None:
    chat = pb.Chat()
    chat.template_kwargs.update({"n": 3, "part": 0.5, "deep": [{"m": 1e6}], "on": True, "none": None, "text": "3.0"})
    keywords = conversions.Conversation.read(chat).keywords
    assert repr(dict(sorted(keywords.items()))) == repr(
        {"deep": [{"m": 1000000}], "n": 3, "none": None, "on": True, "part": 0.5, "text": "3.0"}
    )
    for odd in (math.inf, math.nan):
        chat.template_kwargs.update({"n": odd})
        with pytest.raises(RequestError, match="template_kwargs") as raised:
            conversions.Conversation.read(chat)
        assert raised.value.param == "template_kwargs"


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (RequestError("m", "top_p"), grpc.StatusCode.INVALID_ARGUMENT, "top_p"),
        (QueueFullError("m"), grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
        (EngineDeadError("m"), grpc.StatusCode.UNAVAILABLE, ""),
        (CallError(grpc.StatusCode.NOT_FOUND, "m", "model"), grpc.StatusCode.NOT_FOUND, "model"),
    ],
)
def test_errors_have_their_status_also_over_the_wire(error: Exception, code: grpc.StatusCode, param: str) -> None:
    wire = pb.Error()
    CallError.of(error).write(wire)
    read = CallError.read(wire)
    assert (read.code, read.message, read.param) == (code, "m", param)


def test_any_other_error_is_internal_and_says_its_kind() -> None:
    error = CallError.of(KeyError("k"))
    assert (error.code, error.message) == (grpc.StatusCode.INTERNAL, "KeyError: 'k'")


def test_logprobs(tokenizer: Tokenizer) -> None:
    a, b, e_acute = (*tokenizer.encode("ab"), tokenizer.encode("é")[0])
    logprobs = Logprobs(
        np.array([-0.5, -1.5], np.float32), np.array([1, 3], np.int32),
        np.array([[a, b], [e_acute, a]], np.int32), np.array([[-0.5, -2], [-0.1, -1]], np.float32),
    )  # fmt: skip
    chunk = pb.GenerateChunk()
    conversions.write_logprobs(chunk.logprobs, [a, b], logprobs, tokenizer)
    assert [(e.token_id, e.logprob, e.rank, e.token, e.token_bytes) for e in chunk.logprobs] == [
        (a, -0.5, 1, "a", b"a"),
        (b, -1.5, 3, "b", b"b"),
    ]
    assert [(t.token_id, t.token, t.token_bytes) for t in chunk.logprobs[1].top] == [
        (e_acute, "�", b"\xc3"),
        (a, "a", b"a"),
    ]
    assert [t.logprob for t in chunk.logprobs[1].top] == pytest.approx([-0.1, -1])


def test_logprobs_of_no_alternatives_and_of_fewer_tokens(tokenizer: Tokenizer) -> None:
    none = np.zeros((2, 0))
    logprobs = Logprobs(np.array([-0.5, -1.5]), np.array([1, 3]), none.astype(np.int32), none)
    chunk = pb.GenerateChunk()
    conversions.write_logprobs(chunk.logprobs, [7], logprobs, tokenizer)
    assert [(e.token_id, len(e.top)) for e in chunk.logprobs] == [(7, 0)]


def test_timings_of_a_whole_course_and_of_one_that_never_ran() -> None:
    timings = pb.Timings()
    conversions.write_timings(
        timings, Delta("r", [], arrival=1, first_scheduled=2, first_token=4, finished=8), now=99
    )  # fmt: skip
    assert timings == pb.Timings(
        queue_seconds=1, prefill_seconds=2, decode_seconds=4, first_token_seconds=3, total_seconds=7
    )
    timings = pb.Timings()
    conversions.write_timings(timings, Delta("r", [], finish=FinishReason.ABORT, arrival=1), now=5)
    assert timings == pb.Timings(queue_seconds=4, total_seconds=4)


def test_load_says_everything() -> None:
    response = conversions.load_response(Load(running=1, pages_total=8, pages_free=2, steps_decode=5))
    assert (response.running, response.cache_usage, response.steps_decode) == (1, 0.75, 5)
