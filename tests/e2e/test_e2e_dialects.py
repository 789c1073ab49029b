"""OpenAI's Responses and Anthropic's Messages, by their own clients, on real models over real sockets."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest
from calling_server import ANSWER, CALLS, CONTENT, PROMPT, REASONING
from openai_document import OpenApi
from processes import SMALL, Server, serving, until

from jaxllm.server.text import Tokenizer

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
WEATHER = {
    "type": "object", "properties": {"city": STRING, "days": INTEGER}, "required": ["city", "days"],
    "additionalProperties": False,
}  # fmt: skip
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS: list[Any] = [
    {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True},
    {"type": "function", "name": "now", "parameters": NOTHING},
]
TOOLS: list[Any] = [{"name": "get_weather", "input_schema": WEATHER}, {"name": "now", "input_schema": NOTHING}]
CALLER = "stories260K-hf"
QUESTION = "How is the weather in Paris?"


@pytest.fixture(scope="module")
def openapi(material: Path) -> OpenApi:
    return OpenApi.load(material)


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    """The bundled demo model."""
    with serving("--http-port", "0", *SMALL) as server:
        yield server


def openai_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def anthropic_of(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


def reasoning_tokens(stories: Path) -> int:
    """Of what the calling model writes: the tokens up to the end of thinking, with its mark."""
    tokenizer = Tokenizer.load(str(stories))
    token_ids = tokenizer.encode(ANSWER, add_special_tokens=False)
    count = next(n for n in range(len(token_ids)) if "</think>" in tokenizer.decode(token_ids[:n], False))
    opened = next(n for n in range(len(token_ids)) if "<think>" in tokenizer.decode(token_ids[:n], False))
    return count - opened + 1  # the first tag's earlier tokens are not known to be one


def parts_of(output: list[Any]) -> list[Any]:
    parts: list[Any] = []
    for item in output:
        match item.type:
            case "reasoning":
                parts.append(item.content[0].text)
            case "message":
                parts.append(item.content[0].text)
            case "function_call":
                parts.append((item.name, item.arguments))
    return parts


def test_a_response_that_reasons_and_calls(calling_server: Server, openapi: OpenApi, stories: Path) -> None:
    with openai_of(calling_server) as client:
        asked: dict[str, Any] = {"model": CALLER, "input": QUESTION, "tools": FUNCTIONS}
        whole = client.responses.parse(**asked)
        openapi.check("Response", client.responses.retrieve(whole.id).model_dump(mode="json", exclude_unset=True))
        assert parts_of(whole.output) == [REASONING, CONTENT, *CALLS]
        assert whole.output[2].parsed_arguments == {"city": "Paris", "days": 3}
        assert whole.usage.output_tokens_details.reasoning_tokens == reasoning_tokens(stories)
        with client.responses.stream(**asked) as stream:
            events = list(stream)
        assert parts_of(events[-1].response.output) == parts_of(whole.output)
        assert events[-1].response.usage.output_tokens_details == whole.usage.output_tokens_details
        raw = list(client.responses.create(**asked, stream=True))
        for event in raw:
            openapi.check("ResponseStreamEvent", event.model_dump(mode="json", exclude_unset=True))
        deltas = [event.delta for event in raw if event.type == "response.function_call_arguments.delta"]
        assert len(deltas) > 4, "the arguments came as they were written"
        results = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
            for item in whole.output
            if item.type == "function_call"
        ]
        assert len(results) == 2
        after = client.responses.create(model=CALLER, input=results, previous_response_id=whole.id, tools=FUNCTIONS)
        assert parts_of(after.output) == [REASONING, CONTENT, *CALLS]
        single = client.responses.create(**asked, parallel_tool_calls=False)
        assert parts_of(single.output) == [REASONING, CONTENT, CALLS[0]]
        plain = client.responses.create(**asked, tool_choice="none")
        assert [item.type for item in plain.output] == ["reasoning", "message"]


def test_a_message_that_thinks_and_calls(calling_server: Server, stories: Path) -> None:
    with anthropic_of(calling_server) as client:
        asked: dict[str, Any] = {
            "model": CALLER, "max_tokens": 400, "tools": TOOLS, "messages": [{"role": "user", "content": QUESTION}],
        }  # fmt: skip
        whole = client.messages.create(**asked)
        thinking, text, *calls = whole.content
        assert (thinking.thinking, text.text) == (REASONING, CONTENT)
        assert [(call.name, call.input) for call in calls] == [
            ("get_weather", {"city": "Paris", "days": 3}),
            ("now", {}),
        ]
        assert whole.stop_reason == "tool_use"
        assert whole.usage.output_tokens_details.thinking_tokens == reasoning_tokens(stories)
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()

        def said(message: Any) -> Any:
            ids = {"id", "parsed_output"}
            return [block.model_dump(exclude=ids, exclude_none=True) for block in message.content]

        assert said(final) == said(whole)
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == whole.usage.output_tokens
        # The answer goes back as it came, with the results.
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
        turns = [{"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
        assert said(client.messages.create(**asked | {"messages": asked["messages"] + turns})) == said(whole)
        counted = client.messages.count_tokens(model=CALLER, messages=asked["messages"], tools=TOOLS)
        assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
        assert counted.input_tokens == len(Tokenizer.load(str(stories)).encode(PROMPT, add_special_tokens=False))
        single = client.messages.create(**asked, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
        assert [block.type for block in single.content] == ["thinking", "text", "tool_use"]
        cut = client.messages.create(**asked | {"max_tokens": 10})
        assert (cut.stop_reason, cut.content[0].type) == ("max_tokens", "thinking")
        assert REASONING.startswith(cut.content[0].thinking)


async def test_all_dialects_say_the_same(demo: Server) -> None:
    """One reading of every parameter: the same question has the same answer."""
    seed, limit = random.randrange(2**31), random.randint(5, 30)
    question = f"Tell me of {random.choice(['Lily', 'a cat', 'the sea'])}."
    common: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9}
    more = {"seed": seed, "top_k": 20, "repetition_penalty": 1.1}
    async with (
        openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=60) as client,
        anthropic.AsyncAnthropic(base_url=demo.url, api_key="none", max_retries=0, timeout=60) as other,
    ):
        messages: list[Any] = [{"role": "user", "content": question}]
        chat = await client.chat.completions.create(
            model="demo", messages=messages, max_tokens=limit, extra_body=more, **common
        )
        response = await client.responses.create(
            model="demo", input=question, max_output_tokens=limit, extra_body=more, **common
        )
        message = await other.messages.create(
            model="demo", messages=messages, max_tokens=limit, extra_body=more | common
        )
        text = chat.choices[0].message.content
        assert text == response.output_text == message.content[0].text
        async with other.messages.stream(
            model="demo", messages=messages, max_tokens=limit, extra_body=more | common
        ) as stream:
            pieces = [piece async for piece in stream.text_stream]
        assert "".join(pieces) == text
        usage = response.usage
        assert chat.usage.prompt_tokens == usage.input_tokens
        assert message.usage.input_tokens + message.usage.cache_read_input_tokens == usage.input_tokens
        assert chat.usage.completion_tokens == usage.output_tokens == message.usage.output_tokens


class Visit(pydantic.BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    sunny: bool


def test_answers_of_a_form(demo: Server) -> None:
    """The clients make instances of pydantic's classes of them."""
    with openai_of(demo) as client, anthropic_of(demo) as other:
        # The penalty keeps a model that knows nothing of JSON from writing white space alone, which is no error.
        question, more = "Where to?", {"seed": random.randrange(2**31), "temperature": 1.0, "frequency_penalty": 2.0}
        parsed = client.responses.parse(
            model="demo", input=question, text_format=Visit, max_output_tokens=600, extra_body=more
        )
        assert isinstance(parsed.output_parsed, Visit)
        with client.responses.stream(
            model="demo", input=question, text_format=Visit, max_output_tokens=600, extra_body=more
        ) as stream:
            assert stream.get_final_response().output_parsed == parsed.output_parsed
        message = other.messages.parse(
            model="demo", messages=[{"role": "user", "content": question}], output_format=Visit, max_tokens=600,
            extra_body=more,
        )  # fmt: skip
        assert isinstance(message.parsed_output, Visit)


def test_calls_that_have_to_come(calling_server: Server) -> None:
    with openai_of(calling_server) as client, anthropic_of(calling_server) as other:
        asked: dict[str, Any] = {"model": CALLER, "input": QUESTION, "tools": FUNCTIONS, "max_output_tokens": 300}
        for choice in ("required", {"type": "function", "name": "now"}):
            response = client.responses.create(**asked, tool_choice=choice)
            calls = [item for item in response.output if item.type == "function_call"]
            assert calls
            if choice != "required":
                assert [(call.name, json.loads(call.arguments)) for call in calls] == [("now", {})]
        message = other.messages.create(
            model=CALLER, max_tokens=300, tools=TOOLS, messages=[{"role": "user", "content": QUESTION}],
            tool_choice={"type": "tool", "name": "now"},
        )  # fmt: skip
        (call,) = [block for block in message.content if block.type == "tool_use"]
        assert (message.stop_reason, call.name, call.input) == ("tool_use", "now", {})


def test_the_next_turn_finds_its_prefix_cached(demo: Server) -> None:
    with openai_of(demo) as client:
        story = " ".join(random.choice(["rain", "sun", "wind", "snow"]) for _ in range(80))
        first = client.responses.create(model="demo", input=story, max_output_tokens=16)
        second = client.responses.create(
            model="demo", input="And then?", previous_response_id=first.id, max_output_tokens=4
        )
        assert second.usage.input_tokens > first.usage.input_tokens + 8
        assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens / 2


def test_cancelling_gives_the_pages_back(demo: Server) -> None:
    total = demo.load().pages_total
    with openai_of(demo) as client:
        running = [
            client.responses.create(
                model="demo", input=f"Tell me {random.random()}", background=True, extra_body={"ignore_eos": True}
            ).id
            for _ in range(3)
        ]
        until(lambda: demo.load().running == 3)
        kept, *cancelled = running
        for response_id in cancelled:
            assert client.responses.cancel(response_id).status == "cancelled"
        until(lambda: demo.load().running <= 1)
        client.responses.delete(kept)
        until(lambda: demo.load().running == 0)
        until(lambda: demo.load().pages_free == total)


def test_leaving_ends_a_response_and_not_one_in_the_background(demo: Server) -> None:
    with openai_of(demo) as client:
        for background in (False, True):
            stream = client.responses.create(
                model="demo", input="Tell me", stream=True, background=background, max_output_tokens=400,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            events = iter(stream)
            response_id = next(events).response.id
            while next(events).type != "response.output_text.delta":
                pass
            stream.close()
            until(lambda id=response_id: client.responses.retrieve(id).status in ("cancelled", "incomplete"))
            response = client.responses.retrieve(response_id)
            assert response.status == ("incomplete" if background else "cancelled")
            if background:
                assert response.usage.output_tokens == 400
                followed = list(client.responses.retrieve(response_id, stream=True))
                text = "".join(event.delta for event in followed if event.type == "response.output_text.delta")
                assert text == response.output_text
        until(lambda: demo.load().running == 0)
