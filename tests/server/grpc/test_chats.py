"""Chats: what of the answer is content, reasoning and calls, and which tools and choices are taken."""

import json
import random

import grpc
import pytest
from scripted import ScriptedEngine, Served

from jaxllm.core import FinishReason
from jaxllm.server.grpc.session import ChatOptions
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.text import AnswerFormat, Tokenizer
from jaxllm.server.text.chat import RESERVED

PARAMETERS = {"type": "object", "properties": {"z": {}, "a": {}}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}
ANSWER = '<think>Hm.</think>I look.\n<tool_call>{"name": "look", "arguments": {"city": "Paris"}}</tool_call>'
USER = pb.ChatMessage(role="user", content="hi")


@pytest.fixture
def chats() -> ChatOptions:
    return ChatOptions(AnswerFormat("hermes", "think_tags"), auto_tool_choice=True)


@pytest.fixture
def encode(tokenizer: Tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def request(*messages: pb.ChatMessage, tools: bool = True, **fields) -> pb.GenerateRequest:
    sampling = pb.Sampling(**{name: fields.pop(name) for name in list(fields) if name in ("stop", "detokenize")})
    chat = pb.Chat(messages=messages or [USER], tools=[json.dumps(TOOL)] if tools else [], **fields)
    return pb.GenerateRequest(request_id="a", chat=chat, sampling=sampling)


async def answer(served: Served, wire: pb.GenerateRequest, tokens: list[int], **step) -> pb.GenerateResponse:
    call = served.inference.Generate(wire)
    await served.engine.submitted("a")
    for token in tokens[:-1]:
        served.engine.step({"a": [token]})
    served.engine.step({"a": tokens[-1:]}, finish=FinishReason.STOP, **step)
    return await call


async def test_an_answer_in_its_parts(served: Served, encode) -> None:
    response = await answer(served, request(), [*encode(ANSWER), 257], stop_token=257)
    assert (response.reasoning, response.text) == ("Hm.", "I look.")
    (call,) = response.tool_calls
    assert (call.name, call.arguments) == ("look", '{"city": "Paris"}')
    assert call.id.startswith("call_")
    assert response.token_ids == [*encode(ANSWER), 257]


async def test_the_parts_stream(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.GenerateStream(request())
    await engine.submitted("a")
    chunks = []
    for token in encode(ANSWER):
        engine.step({"a": [token]})
        chunks.append(await call.read())
    engine.step({"a": [257]}, finish=FinishReason.STOP, stop_token=257)
    chunks.append(await call.read())
    assert await call.read() is grpc.aio.EOF
    assert "".join(chunk.reasoning for chunk in chunks) == "Hm."
    assert "".join(chunk.text for chunk in chunks) == "I look."
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert len(deltas) > 10  # the arguments came as they were written
    assert [delta.index for delta in deltas] == [0] * len(deltas)
    assert (deltas[0].name, bool(deltas[0].id)) == ("look", True)
    assert not any(delta.name or delta.id for delta in deltas[1:])
    assert "".join(delta.arguments for delta in deltas) == '{"city": "Paris"}'
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * len(chunks)


async def test_reasoning_is_counted_however_tokens_come(served: Served, engine: ScriptedEngine, encode) -> None:
    """Each byte is a token here; the first tag is known to be one at its last."""
    thought = "".join(random.choices("abc. ", k=random.randint(1, 20)))
    text = f"<think>{thought}</think>I look."
    tokens, expected = encode(text), len(f">{thought}</think>")
    for size in (1, 2, 7, len(tokens)):
        wire = request()
        wire.request_id = f"by {size}"
        call = served.inference.Generate(wire)
        await engine.submitted(wire.request_id)
        for start in range(0, len(tokens), size):
            engine.step({wire.request_id: tokens[start : start + size]})
        engine.step({wire.request_id: [257]}, finish=FinishReason.STOP, stop_token=257)
        response = await call
        assert response.reasoning == thought.strip()
        assert response.text == "I look."
        assert (response.counts.reasoning, response.counts.completion) == (expected, len(tokens) + 1)
    call = served.inference.Generate(request(stop=["I l"]))
    await engine.submitted("a")
    engine.step({"a": tokens})
    response = await call
    assert (response.text, response.counts.completion) == ("", len(tokens) - len("ook."))
    assert response.finish.stop_string == "I l"


async def test_chunks_that_wait_are_joined(served: Served, engine: ScriptedEngine, encode) -> None:
    two = ANSWER + '\n<tool_call>{"name": "look", "arguments": {"city": "Nice"}}</tool_call>'
    response = await answer(served, request(), [*encode(two), 257], stop_token=257)
    assert [call.arguments for call in response.tool_calls] == ['{"city": "Paris"}', '{"city": "Nice"}']
    assert len({call.id for call in response.tool_calls}) == 2


async def test_one_call_where_they_are_not_to_be_parallel(served: Served, encode) -> None:
    tokens = encode(ANSWER + '<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    response = await answer(served, request(parallel_tool_calls=False), tokens)
    assert [call.arguments for call in response.tool_calls] == ['{"city": "Paris"}']


async def test_what_a_stop_string_or_the_end_holds_back_comes_out(served: Served, engine, encode) -> None:
    call = served.inference.Generate(request(stop=["STOP"]))
    await engine.submitted("a")
    engine.step({"a": encode("<think>x</think>Text <tool_STOP")})
    assert (await call).text == "Text <tool_"
    engine.requests.clear()
    response = await answer(served, request(), encode("Text <tool_call>{"))
    assert (response.text, list(response.tool_calls)) == ("Text <tool_call>{", [])


async def test_the_prompt_shows_tools_documents_and_earlier_calls(served: Served, engine, encode) -> None:
    call = pb.ToolCall(id="c", name="look", arguments='{"city": "Nice"}')
    wire = request(
        pb.ChatMessage(role="user", parts=[pb.ContentPart(text="x"), pb.ContentPart(text="y")]),
        pb.ChatMessage(role="assistant", tool_calls=[call]),
        pb.ChatMessage(role="tool", content="3", tool_call_id="c"),
        documents=['{"text": "doc"}'],
    )
    await answer(served, wire, encode("x"))
    conversation = "<user>x\ny<assistant>[Nice]<tool>3<assistant>"
    assert engine.requests["a"].prompt == encode(f"{json.dumps(TOOL)}(doc){conversation}")
    tokens = (await served.inference.Tokenize(pb.TokenizeRequest(chat=wire.chat))).token_ids
    assert tokens == engine.requests["a"].prompt


@pytest.mark.parametrize(
    "name", ["self", "tokenizer", "messages", "conversation", "conversations", "", "class", "kwargs"]
)
async def test_no_name_of_a_variable_is_an_internal_error(served: Served, encode, name: str) -> None:
    chat = pb.Chat(messages=[USER])
    chat.template_kwargs.update({name: 1})
    calls = (
        served.inference.Tokenize(pb.TokenizeRequest(chat=chat)),
        served.inference.Generate(pb.GenerateRequest(request_id="a", chat=chat, sampling=pb.Sampling(max_tokens=1))),
    )
    if name in RESERVED:
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError, match=name) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return
    await served.engine.submitted("a")
    served.engine.step({"a": encode("x")}, finish=FinishReason.LENGTH)
    assert [(await call).token_ids for call in calls] == [encode("<user>hi<assistant>"), encode("x")]


@pytest.mark.parametrize("fields", [{"tools": False}, {"tool_choice": pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)}])
async def test_without_tools_nothing_is_a_call(served: Served, engine, encode, fields: dict) -> None:
    response = await answer(served, request(**fields), encode(ANSWER))
    assert engine.requests["a"].prompt == encode("<user>hi<assistant>")
    assert response.reasoning == "Hm."
    assert response.text == ANSWER.partition("</think>")[2]
    assert not response.tool_calls


async def test_texts_and_token_ids_are_answered_as_they_are(served: Served, encode) -> None:
    for prompt in ({"text": "hi"}, {"token_ids": pb.TokenIds(ids=[1])}):
        response = await answer(served, pb.GenerateRequest(request_id="a", **prompt), encode(ANSWER))
        assert (response.text, response.reasoning, list(response.tool_calls)) == (ANSWER, "", [])
        served.engine.requests.clear()


async def test_token_ids_alone(served: Served, encode) -> None:
    response = await answer(served, request(detokenize=False), encode(ANSWER))
    assert (response.text, response.reasoning, list(response.tool_calls)) == ("", "", [])


@pytest.mark.parametrize(
    ("chats", "fields", "why", "param"),
    [
        (ChatOptions(AnswerFormat(), True), {}, "--tool-call-parser NAME", "tools"),
        (ChatOptions(AnswerFormat("hermes"), False), {}, "'auto' is turned off", "tool_choice"),
        (None, {}, "--tool-call-parser NAME", "tools"),
        (
            ChatOptions(AnswerFormat("qwen3_coder"), True),
            {"tool_choice": pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)},
            "a call of 'look' cannot be made sure of: 'z' may be a string or something else",
            "tools",
        ),
        (
            ChatOptions(AnswerFormat("hermes"), True),
            {"tool_choice": pb.ToolChoice(function="other")},
            "none of the tools",
            "tool_choice",
        ),
    ],
)
async def test_tools_that_are_refused(served: Served, fields: dict, why: str, param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=why) as raised:
        await served.inference.Generate(request(**fields))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(raised.value.trailing_metadata() or ())["jaxllm-param"] == param
    assert not served.engine.requests
