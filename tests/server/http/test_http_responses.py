"""/v1/responses: what is made of a response's input, and what of the engine's chunks, by OpenAI's own client."""

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.responses.reading import InputTokensRequest, ResponsesRequest

RESPONSES = "/v1/responses"
LOOK: dict[str, Any] = {
    "type": "function", "name": "look", "description": "d", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip
WAIT: dict[str, Any] = {"type": "function", "name": "wait", "parameters": {}}
LOGPROBS = ["message.output_text.logprobs"]


@pytest.fixture(scope="module")
def client(shared_front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared_front.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def plain(model: pydantic.BaseModel) -> Any:
    return model.model_dump(mode="json", exclude_unset=True)


def without_ids(output: list[Any]) -> list[Any]:
    return [{name: value for name, value in item.items() if name != "id"} for item in output]


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def events_of(text: str) -> list[Any]:
    *events, end = text.split("\n\n")
    assert end == ""
    parsed = []
    for event in events:
        kind, data = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {parsed[-1]['type']}"
    return parsed


def check_events(events: list[Any], openapi) -> dict[str, Any]:
    """Their order, their numbers and their sums; the response of the last one."""
    for event in events:
        openapi.check("ResponseStreamEvent", event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    response = events[-1]["response"]
    assert events[-1]["type"] == f"response.{response['status']}"
    rest = events[2:-1]
    for index, item in enumerate(response["output"]):
        own = [event for event in rest if event["output_index"] == index]
        assert rest[: len(own)] == own, "one item after the other"
        rest = rest[len(own) :]
        added, *inner, done = own
        assert (added["type"], done["type"]) == ("response.output_item.added", "response.output_item.done")
        assert done["item"] == item
        assert added["item"]["status"] == "in_progress"
        assert {event["item_id"] for event in inner} == {item["id"]} == {added["item"]["id"]}
        kind = {"message": "output_text", "reasoning": "reasoning_text"}.get(item["type"], "function_call_arguments")
        if item["type"] != "function_call":
            first, *inner, last = inner
            assert (first["type"], last["type"]) == ("response.content_part.added", "response.content_part.done")
            assert first["part"]["text"] == ""
            assert last["part"] == item["content"][0]
            assert {event["content_index"] for event in (first, *inner, last)} == {0}
        *deltas, end = inner
        assert {event["type"] for event in deltas} <= {f"response.{kind}.delta"}
        assert end["type"] == f"response.{kind}.done"
        whole = end["arguments"] if item["type"] == "function_call" else end["text"]
        assert "".join(event["delta"] for event in deltas) == whole
        if kind == "output_text":
            assert [entry for event in deltas for entry in event["logprobs"]] == end["logprobs"]
    assert rest == []
    return response


def test_a_response(client, shared_front, openapi):
    raw = client.responses.with_raw_response.create(
        model="scripted",
        input="one two three four",
        max_output_tokens=4,
        metadata={"a": "b"},
        user="u",
        temperature=0.5,
    )
    response = raw.parse()
    openapi.check("Response", plain(response))
    assert raw.headers["x-request-id"] == response.id
    assert response.id.startswith("resp_")
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text == "Once upon a tïme"
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert plain(response.usage) == {
        "input_tokens": 4, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 8,
    }  # fmt: skip
    assert (response.metadata, response.temperature, response.user) == ({"a": "b"}, 0.5, "u")
    assert shared_front.last_request.sampling.max_tokens == 4
    assert client.responses.retrieve(response.id) == response


def test_reasoning_text_and_calls(client, openapi):
    response = client.responses.create(model="scripted", input="call", tools=[LOOK, WAIT])
    openapi.check("Response", plain(response))
    assert response.status == "completed"
    assert response.completed_at >= response.created_at
    assert without_ids(plain(response)["output"]) == [
        {"type": "reasoning", "summary": [], "status": "completed",
         "content": [{"type": "reasoning_text", "text": "They want the weather."}]},
        {"type": "message", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"city": "Paris"}',
         "status": "completed"},
        {"type": "function_call", "call_id": "call_2", "name": "wait", "arguments": "{}", "status": "completed"},
    ]  # fmt: skip
    assert len({item.id for item in response.output}) == 4
    assert response.usage.output_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize("fields", [{}, {"include": LOGPROBS, "top_logprobs": 2}, {"store": False}], ids=str)
@pytest.mark.parametrize("prompt", ["slow", "call", "stop x", "mute"])
def test_events(shared_front, openapi, fields, prompt):
    answer = shared_front.post(RESPONSES, input=prompt, stream=True, **fields)
    assert answer.headers["content-type"].startswith("text/event-stream")
    response = check_events(events_of(answer.text), openapi)
    whole = shared_front.post(RESPONSES, input=prompt, **fields).json()
    openapi.check("Response", whole)
    assert without_ids(whole["output"]) == without_ids(response["output"])
    assert whole["usage"] == response["usage"]


def test_events_of_answers_that_are_cut_off(shared_front, openapi):
    for limit in range(1, 8):
        answer = shared_front.post(RESPONSES, input="call", stream=True, max_output_tokens=limit)
        response = check_events(events_of(answer.text), openapi)
        cut = limit < 7
        assert response["status"] == ("incomplete" if cut else "completed")
        statuses = [item["status"] for item in response["output"]]
        assert statuses == ["completed"] * (len(statuses) - 1) + ["incomplete" if cut else "completed"]


def test_the_clients_own_stream(client):
    with client.responses.stream(model="scripted", input="call", tools=[LOOK, WAIT]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    whole = client.responses.parse(model="scripted", input="call", tools=[LOOK, WAIT])
    assert without_ids(plain(final)["output"]) == without_ids(plain(whole)["output"])
    assert final.output[2].parsed_arguments == {"city": "Paris"}
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert snapshots == ['{"city": "Pa', '{"city": "Paris"}', "{", "{}"]


async def test_the_async_client(shared_front, openapi):
    async with openai.AsyncOpenAI(base_url=f"{shared_front.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model="scripted", input="slow", stream=True)
        response = check_events([plain(event) async for event in stream], openapi)
        whole = await client.responses.create(model="scripted", input="slow")
        async with client.responses.stream(model="scripted", input="slow") as own:
            final = [event async for event in own][-1].response
        assert response["output"][0]["content"][0]["text"] == whole.output_text == final.output_text


def test_an_answer_of_nothing_has_a_message(shared_front, openapi):
    answer = shared_front.post(RESPONSES, input="mute", max_output_tokens=2).json()
    openapi.check("Response", answer)
    assert answer["output"][0]["content"][0]["text"] == ""


def test_logprobs(client, shared_front):
    response = client.responses.create(
        model="scripted", input="x", max_output_tokens=3, include=LOGPROBS, top_logprobs=2
    )
    entries = response.output[0].content[0].logprobs
    assert [entry.token for entry in entries] == ["Once", " upon", " a"]
    assert [[top.logprob for top in entry.top_logprobs] for entry in entries] == [[-0.125, -0.25]] * 3
    assert bytes(entries[1].bytes).decode() == " upon"
    assert shared_front.last_request.sampling.logprobs == 2
    client.responses.create(model="scripted", input="x", max_output_tokens=1, include=LOGPROBS)
    assert shared_front.last_request.sampling.logprobs == 0
    client.responses.create(model="scripted", input="x", max_output_tokens=1)
    assert not shared_front.last_request.sampling.HasField("logprobs")


def messages_of(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    return [(m.role, m.content or "|".join(part.text for part in m.parts)) for m in request.chat.messages]


def test_the_forms_of_input(shared_front):
    items = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hi", "type": "message"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "wait", "arguments": '{"s": 1}', "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "and"}, {"type": "input_text", "text": "now?"}]},
    ]  # fmt: skip
    answer = shared_front.post(RESPONSES, input=items, instructions="be brief", max_output_tokens=1)
    assert answer.status_code == 200, answer.text
    chat = shared_front.last_request.chat
    assert messages_of(shared_front.last_request) == [
        ("system", "be brief\n\nbe kind"), ("user", "hi"), ("assistant", "I look."), ("tool", "rain"),
        ("tool", "done"), ("user", "and|now?"),
    ]  # fmt: skip
    turn = chat.messages[2]
    assert turn.reasoning == "hm"
    assert [(call.id, call.name, call.arguments) for call in turn.tool_calls] == [
        ("c1", "look", "{}"), ("c2", "wait", '{"s": 1}'),
    ]  # fmt: skip
    assert [message.tool_call_id for message in chat.messages[3:5]] == ["c1", "c2"]


def test_turns_stay_apart_where_their_order_is_another(shared_front):
    items = [
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"role": "assistant", "content": "so"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]},
        {"role": "assistant", "content": "then"},
        {"role": "system", "content": "late"},
    ]
    shared_front.post(RESPONSES, input=items, max_output_tokens=1)
    chat = shared_front.last_request.chat
    assert messages_of(shared_front.last_request) == [
        ("assistant", ""), ("assistant", "so"), ("assistant", "then"), ("system", "late"),
    ]  # fmt: skip
    assert [message.reasoning for message in chat.messages] == ["", "", "why", ""]


def test_the_next_turn_names_the_last(client, shared_front):
    first = client.responses.create(model="scripted", input="now", instructions="call", tools=[LOOK])
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "42"}
        for item in first.output
        if item.type == "function_call"
    ]
    second = client.responses.create(
        model="scripted", input=results, previous_response_id=first.id, instructions="two", max_output_tokens=2
    )
    request = shared_front.last_request
    assert [role for role, _ in messages_of(request)] == ["system", "user", "assistant", "tool", "tool"]
    assert request.chat.messages[0].content == "two", "instructions are not carried over"
    turn = request.chat.messages[2]
    assert (turn.reasoning, turn.parts[0].text) == ("They want the weather.", "I look.")
    assert [call.id for call in turn.tool_calls] == ["call_1", "call_2"]
    third = client.responses.create(model="scripted", input="and?", previous_response_id=second.id, max_output_tokens=1)
    roles = [role for role, _ in messages_of(shared_front.last_request)]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "user"]
    listed = list(client.responses.input_items.list(third.id, order="asc", limit=2))  # the client reads every page
    assert [item.type for item in listed] == [
        "message", "reasoning", "message", "function_call", "function_call", "function_call_output",
        "function_call_output", "message", "message",
    ]  # fmt: skip
    assert [item.id for item in listed[1:5]] == [item.id for item in first.output]


def test_input_items(shared_front, openapi):
    texts = [f"item {random.random()}" for _ in range(7)]
    items = [{"role": random.choice(["user", "assistant"]), "content": text} for text in texts]
    response = shared_front.post(RESPONSES, input=items, max_output_tokens=1).json()
    path = f"{RESPONSES}/{response['id']}/input_items"

    def page(**query: Any) -> Any:
        listed = shared_front.client.get(path, params=query)
        assert listed.status_code == 200, listed.text
        openapi.check("ResponseItemList", listed.json())
        return listed.json()

    def of(listed: Any) -> list[str]:
        return [item["content"][0]["text"] for item in listed["data"]]

    assert of(page()) == texts[::-1]
    first = page(order="asc", limit=3)
    assert (of(first), first["has_more"]) == (texts[:3], True)
    rest = page(order="asc", limit=4, after=first["last_id"])
    assert (of(rest), rest["has_more"]) == (texts[3:], False)
    assert error_of(shared_front.client.get(path, params={"after": "x"}), 400)["param"] == "after"
    assert error_of(shared_front.client.get(path, params={"limit": 101}), 400)["param"] == "limit"


def test_tools_reach_the_engine(shared_front):
    def asked(choice: Any, **fields: Any) -> pb.Chat:
        answer = shared_front.post(
            RESPONSES, input="x", tools=[LOOK, WAIT], tool_choice=choice, max_output_tokens=1, **fields
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["tool_choice"] == choice
        return shared_front.last_request.chat

    chat = asked("auto", parallel_tool_calls=False, reasoning={"effort": "low"})
    function = {name: LOOK[name] for name in ("name", "description", "parameters")}
    assert json.loads(chat.tools[0]) == {"type": "function", "function": function}
    assert not chat.parallel_tool_calls
    assert dict(chat.template_kwargs) == {"reasoning_effort": "low"}
    assert asked("none").tool_choice.mode == pb.ToolChoice.MODE_NONE
    assert asked("required").tool_choice.mode == pb.ToolChoice.MODE_REQUIRED
    assert asked({"type": "function", "name": "wait"}).tool_choice.function == "wait"
    allowed = asked({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "wait"}]})
    assert [json.loads(tool)["function"]["name"] for tool in allowed.tools] == ["wait"]
    assert allowed.tool_choice.mode == pb.ToolChoice.MODE_REQUIRED


def test_a_form_reaches_the_engine(client, shared_front, openapi):
    class City(pydantic.BaseModel):
        name: str
        people: int

    def asked(**fields: Any) -> pb.StructuredOutputs:
        answer = shared_front.post(RESPONSES, input="x", max_output_tokens=1, **fields)
        assert answer.status_code == 200, answer.text
        openapi.check("Response", answer.json())
        assert answer.json()["text"] == fields.get("text", {"format": {"type": "text"}})
        return shared_front.last_request.sampling.structured_outputs

    schema = City.model_json_schema()
    form = {"type": "json_schema", "name": "city", "schema": schema, "strict": True}
    assert json.loads(asked(text={"format": form}).json) == schema
    assert asked(text={"format": {"type": "json_object"}}).json_object
    assert asked(structured_outputs={"regex": "a+"}).regex == "a+"
    assert not asked().ListFields()
    error = error_of(shared_front.post(RESPONSES, input="x", text={"format": {"type": "json_schema"}}), 400)
    assert error["param"] == "text.format"


def test_what_is_common_to_all_dialects_reaches_the_engine(shared_front):
    sampling = {
        "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5, "seed": 3,
        "stop": ["a"], "min_tokens": 1, "thinking_token_budget": 9, "logit_bias": {"5": 1.0},
    }  # fmt: skip
    answer = shared_front.post(RESPONSES, input="x", priority=-2, cache_salt="mine", max_output_tokens=2, **sampling)
    assert answer.status_code == 200, answer.text
    request = shared_front.last_request
    assert request.sampling.top_k == 7
    assert request.sampling.seed == 3
    assert list(request.sampling.stop) == ["a"]
    assert request.sampling.thinking_token_budget == 9
    assert dict(request.sampling.logit_bias) == {5: 1.0}
    assert (request.priority, request.cache_salt) == (-2, "mine")


def test_reasoning_that_comes_back_alone(client, shared_front):
    """Clients without a store keep the encrypted content and nothing else."""
    response = client.responses.create(
        model="scripted", input="call", store=False, include=["reasoning.encrypted_content"]
    )
    reasoning = response.output[0]
    back = {"type": "reasoning", "id": reasoning.id, "summary": [], "encrypted_content": reasoning.encrypted_content}
    client.responses.create(model="scripted", input=[{"role": "user", "content": "x"}, back], max_output_tokens=1)
    assert shared_front.last_request.chat.messages[1].reasoning == "They want the weather."
    with pytest.raises(openai.BadRequestError, match="was not made by this server"):
        client.responses.create(model="scripted", input=[back | {"encrypted_content": "gAAAAxy=="}])


def test_input_tokens(client):
    counted = client.responses.input_tokens.count(model="scripted", input="a b c", instructions="d e")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 5)
    with pytest.raises(openai.BadRequestError, match="unknown field 'stream'"):
        client.responses.input_tokens.count(model="scripted", input="a", extra_body={"stream": True})


def test_truncation_drops_the_oldest_turns(shared_front):
    """The scripted engine's context holds 64 words."""
    lengths = [random.randint(1, 20) for _ in range(20)]
    items = [{"role": "system", "content": "s s"}]
    for index, length in enumerate(lengths):
        items += [
            {"role": "user", "content": " ".join([f"u{index}"] * length)}, {"role": "assistant", "content": "a a"},
        ]  # fmt: skip
    items[-1] = {"role": "user", "content": "last"}
    answer = shared_front.post(RESPONSES, input=items, truncation="auto", max_output_tokens=5)
    assert answer.json()["truncation"] == "auto"
    sent = messages_of(shared_front.last_request)
    assert sent[0] == ("system", "s s")
    asked = [(item["role"], item["content"]) for item in items]
    assert sent[1:] == asked[-len(sent) + 1 :]
    assert sent[1][0] == "user"

    def words(messages: list[tuple[str, str]]) -> int:
        # The scripted engine counts the words of plain contents alone: not those of assistants, which come in parts.
        return sum(len(content.split()) for role, content in messages if role != "assistant")

    assert words(sent) + 5 <= 64
    dropped = asked[1 : -len(sent) + 1]
    turn = next(i for i in reversed(range(len(dropped))) if dropped[i][0] == "user")
    assert words([*dropped[turn:], *sent]) + 5 > 64, "no more than has to go"
    whole = shared_front.post(RESPONSES, input=items[-2:], truncation="auto", max_output_tokens=5)
    assert whole.status_code == 200
    assert len(shared_front.last_request.chat.messages) == 2


USER = {"role": "user", "content": "hi"}


def _nested(levels: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


BAD = [
    ({}, "input", "field required"),
    ({"input": 3}, "input", "string or a list of items"),
    ({"input": []}, "input", "at least one item"),
    ({"input": [USER, 3]}, "input", "input[1] of type None is not supported"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "no item 'x' in the answers that are kept here"),
    ({"input": [{"type": "computer_call"}]}, "input", "'computer_call' is not supported"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input",
     "input[0].content[0] of type 'input_image' is not supported"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input", "'input_file'"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input", "input[0].role"),
    ({"input": [{"role": "user"}]}, "input", "input[0].content: field required"),
    ({"input": [{**USER, "contents": 3}]}, "input", "unknown field 'contents'"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input", "input[0].call_id"),
    ({"tools": [{"type": "web_search"}]}, "tools", "tools[0] of type 'web_search' is not supported"),
    ({"tools": [LOOK, {"type": "mcp", "server_label": "x"}]}, "tools", "tools[1] of type 'mcp'"),
    ({"tools": [{"type": "function"}]}, "tools", "tools[0].name"),
    ({"tools": [LOOK, LOOK]}, "tools", "two functions of the name 'look'"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search' is not supported"),
    ({"tool_choice": "always"}, "tool_choice", "must be 'auto'"),
    ({"tools": [LOOK], "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                       "tools": [{"type": "function", "name": "x"}]}}, "tool_choice", "allows 'x'"),
    ({"include": ["file_search_call.results"]}, "include", "'file_search_call.results' is not supported"),
    ({"top_logprobs": 3}, "top_logprobs", "only with include"),
    ({"background": True, "store": False}, "store", "not with store=false"),
    ({"conversation": "conv_1"}, "conversation", "not supported"),
    ({"prompt": {"id": "p"}}, "prompt", "not supported"),
    ({"moderation": {"model": "m"}}, "moderation", "not supported"),
    ({"context_management": [{"type": "compaction"}]}, "context_management", "not supported"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning", "reasoning.summary='detailed' is not supported"),
    ({"reasoning": {"efort": "low"}}, "efort", "did you mean 'effort'"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "'medium'"),
    ({"text": {"format": {"type": "xml"}}}, "text.format", "'json_schema'"),
    ({"truncation": "some"}, "truncation", "'auto' or 'disabled'"),
    ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "16 pairs"),
    ({"metadata": {"a": "x" * 513}}, "metadata", "512 characters"),
    ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens=0: must be at least 1"),
    ({"max_tokens": 3}, "max_tokens", "unknown field"),
    ({"n": 2}, "n", "unknown field"),
    ({"temperature": -1}, "temperature", "must not be negative"),
    ({"stop": ""}, "stop", "non-empty"),
    ({"seed": 2**63}, "seed", "2**63"),
    ({"stream_options": {"include_usage": True}}, "include_usage", "unknown field"),
    ({"metadata": {"a": "\ud800"}}, None, "surrogate"),
    ({"input": [{**USER, "id": "\ud800"}]}, None, "surrogate"),
    ({"instructions": "\ud800"}, None, "surrogate"),
    ({"text": {"format": {"type": "json_object", "schema": {}}}}, "text", "schema says nothing where type is"),
    ({"text": {"format": {"type": "text", "name": "x"}}}, "text", "name says nothing where type is 'text'"),
    ({"tools": [{"type": "function", "name": "x", "parameters": _nested(101)}]}, "tools", "nested more than 100 deep"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "says"), BAD, ids=lambda value: ascii(value)[:50])
def test_what_is_refused(shared_front, fields, param, says):
    body = fields if "input" in fields or not fields else {"input": "x", **fields}
    answer = shared_front.client.post(RESPONSES, content=json.dumps(body), headers={"content-type": "application/json"})
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"], says in error["message"]) == (param, True), error


def test_neutral_values_are_accepted(shared_front):
    answer = shared_front.post(
        RESPONSES, input="x", max_output_tokens=1, tools=None, tool_choice=None, include=[], conversation=None,
        prompt=None, service_tier="auto", safety_identifier="s", prompt_cache_key="k", max_tool_calls=3,
        reasoning={"effort": None, "summary": "auto"}, text={"format": {"type": "text"}, "verbosity": "medium"},
        stream_options={"include_obfuscation": False}, background=False, metadata=None,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.json()["safety_identifier"] == "s"


@pytest.mark.parametrize(("code", "status"), [(3, 400), (8, 429), (13, 500), (14, 503)])
@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_refusals_have_their_status(shared_front, code, status, stream):
    answer = shared_front.post(RESPONSES, input=f"fail {code}", stream=stream)
    assert error_of(answer, status)["message"] == "as scripted"


def test_an_error_in_the_midst_of_a_stream(shared_front, openapi):
    events = events_of(shared_front.post(RESPONSES, input="fail 13 after 2", stream=True).text)
    for event in events:
        openapi.check("ResponseStreamEvent", event)
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": "server_error", "message": "as scripted"})
    assert response["output"][0]["status"] == "incomplete"
    assert shared_front.get(f"{RESPONSES}/{response['id']}").json() == response
    error = error_of(shared_front.post(RESPONSES, input="x", previous_response_id=response["id"]), 400)
    assert (error["param"], "is failed" in error["message"]) == ("previous_response_id", True)


def test_every_request_field_of_the_description_is_known(openapi):
    assert openapi.properties("CreateResponse") <= ResponsesRequest.model_fields.keys()
    assert openapi.properties("TokenCountsBody") <= InputTokensRequest.model_fields.keys()
