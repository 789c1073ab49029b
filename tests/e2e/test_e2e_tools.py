"""OpenAI's own client and gRPC's, on a served model that reasons and calls tools: every part whole and in a stream."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from calling_server import ANSWER, CALLS, CONTENT, REASONING
from openai_document import OpenApi
from processes import SMALL, Server, serving

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

SCRIPT = Path(__file__).with_name("calling_server.py")
MODEL = "stories260K-hf"
USER = {"role": "user", "content": "How is the weather in Paris?"}
STRING = {"type": "string"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": STRING, "days": {"type": "integer"}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
ASKED: dict[str, Any] = {"model": MODEL, "messages": [USER], "tools": TOOLS, "temperature": 0}


@pytest.fixture(scope="module")
def openapi(material: Path) -> OpenApi:
    return OpenApi.load(material)


@pytest.fixture(scope="module")
def server(calling_server: Server) -> Server:
    return calling_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def calls_of(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def check_whole(answer: Any, openapi: OpenApi) -> None:
    openapi.check("CreateChatCompletionResponse", answer.model_dump(mode="json", exclude_unset=True))
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == CONTENT
    assert choice.message.reasoning_content == choice.message.reasoning == REASONING
    assert calls_of(choice.message) == CALLS
    assert len({call.id for call in choice.message.tool_calls}) == 2


def check_events(events: list[Any], openapi: OpenApi) -> None:
    for event in events:
        openapi.check("CreateChatCompletionStreamResponse", event.model_dump(mode="json", exclude_unset=True))
    deltas = [event.choices[0].delta for event in events]
    assert "".join(delta.content or "" for delta in deltas) == CONTENT
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == REASONING
    parts = [call for delta in deltas for call in delta.tool_calls or ()]
    assert len(parts) > 4  # the arguments came as they were written
    calls: list[tuple[str, str]] = []
    for part in parts:
        if part.index == len(calls):
            assert (part.type, bool(part.id)) == ("function", True)
            calls.append((part.function.name, ""))
        else:
            assert (part.id, part.type, part.function.name) == (None, None, None)
        name, arguments = calls[part.index]
        calls[part.index] = name, arguments + (part.function.arguments or "")
    assert calls == CALLS
    assert [event.choices[0].finish_reason for event in events] == [None] * (len(events) - 1) + ["tool_calls"]


def test_calls(client: openai.OpenAI, openapi: OpenApi) -> None:
    check_whole(client.chat.completions.create(**ASKED), openapi)
    check_events(list(client.chat.completions.create(**ASKED, stream=True)), openapi)


async def test_calls_of_the_async_client(server: Server, openapi: OpenApi) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        check_whole(await client.chat.completions.create(**ASKED), openapi)
        events = [event async for event in await client.chat.completions.create(**ASKED, stream=True)]
        check_events(events, openapi)


def test_the_clients_own_stream_and_parser(client: openai.OpenAI) -> None:
    """They put the deltas together, and check the arguments against strict tools."""
    tools = [TOOLS[0]]
    parsed = client.chat.completions.parse(**ASKED | {"tools": tools, "parallel_tool_calls": False})
    (call,) = parsed.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == {"city": "Paris", "days": 3}
    with client.chat.completions.stream(**ASKED) as stream:
        done = [event.arguments for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert done == [arguments for _, arguments in CALLS]
    assert calls_of(final.choices[0].message) == CALLS
    assert final.choices[0].finish_reason == "tool_calls"


def test_a_conversation_with_what_was_answered(client: openai.OpenAI) -> None:
    """The answer's message is sent back as it came, with the tools' results."""
    message = client.chat.completions.create(**ASKED).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls or ()]
    messages = [USER, message.model_dump(), *results]
    assert client.chat.completions.create(**ASKED | {"messages": messages}).choices[0].finish_reason == "tool_calls"


def test_choices(client: openai.OpenAI) -> None:
    text = f"{CONTENT}\n" + "\n".join(ANSWER.split("\n")[ANSWER.split("\n").index("<tool_call>") :])
    for fields in ({"tool_choice": "none"}, {"tools": openai.omit}):
        (choice,) = client.chat.completions.create(**ASKED | fields).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
        assert choice.message.content == text
    answer = client.chat.completions.create(**ASKED, tool_choice="auto", parallel_tool_calls=False)
    assert calls_of(answer.choices[0].message) == CALLS[:1]
    named = {"type": "function", "function": {"name": "now"}}
    for tool_choice, names in (("required", {"get_weather", "now"}), (named, {"now"})):
        answer = client.chat.completions.create(**ASKED, tool_choice=tool_choice, max_tokens=300)
        called = {name for name, _ in calls_of(answer.choices[0].message)}
        assert called
        assert called <= names


def test_an_answer_that_is_cut_off(client: openai.OpenAI, openapi: OpenApi) -> None:
    for max_tokens in (1, 20, 60, 90, 120, 150):
        answer = client.chat.completions.create(**ASKED, max_tokens=max_tokens)
        openapi.check("CreateChatCompletionResponse", answer.model_dump(mode="json", exclude_unset=True))
        (choice,) = answer.choices
        assert choice.finish_reason == "length"
        text = ANSWER.partition("</think>")[2].strip()
        assert text.startswith((choice.message.content or "").strip())  # a call whose name is cut off is text
        for (name, arguments), (called, whole) in zip(calls_of(choice.message), CALLS, strict=False):
            assert name == called
            assert whole.startswith(arguments)


def test_logprobs_stay_with_the_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, logprobs=True)
    tokens = [entry.token for entry in answer.choices[0].logprobs.content]
    assert "".join(tokens).removesuffix("</s>").endswith(ANSWER)


def test_over_grpc(server: Server) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")], tools=[json.dumps(tool) for tool in TOOLS])
    wire = pb.GenerateRequest(chat=chat, sampling=pb.Sampling(temperature=0))
    response = server.inference.Generate(wire, timeout=60)
    assert (response.reasoning, response.text) == (REASONING, CONTENT)
    assert [(call.name, call.arguments) for call in response.tool_calls] == CALLS
    chunks = list(server.inference.GenerateStream(wire, timeout=60))
    assert "".join(chunk.reasoning for chunk in chunks) == REASONING
    assert "".join(chunk.text for chunk in chunks) == CONTENT
    assert "".join(call.arguments for chunk in chunks for call in chunk.tool_calls) == "".join(a for _, a in CALLS)


def test_a_server_told_to_leave_answers_as_they_are(stories: Path, calling_template: Path) -> None:
    flags = ("--tool-call-parser", "none", "--reasoning-parser", "none", "--http-port", "0")
    command = (sys.executable, SCRIPT, stories)
    with serving("--chat-template", calling_template, *flags, *SMALL, command=command) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            with pytest.raises(openai.BadRequestError, match="--tool-call-parser NAME"):
                client.chat.completions.create(**ASKED)
            answer = client.chat.completions.create(**ASKED, tool_choice="none")
        assert (answer.choices[0].message.content or "").strip() == ANSWER


def test_an_unknown_parser_is_an_error_at_once(stories: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"tool_call_parser='hermos': must be auto, none or one of .*hermes"),
        serving("--model", stories, "--tool-call-parser", "hermos", "--http-port", "-1"),
    ):
        pass
