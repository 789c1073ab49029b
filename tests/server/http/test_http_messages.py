"""/v1/messages: what is made of Anthropic's turns and of the engine's chunks, by Anthropic's own client."""

import json
import random
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.messages.events import MessageAnswer
from jaxllm.server.http.messages.reading import MessagesRequest

MESSAGES = "/v1/messages"
USER = {"role": "user", "content": "hi"}
LOOK: dict[str, Any] = {
    "name": "look", "description": "d",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def client(shared_front) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=shared_front.url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "max_tokens": 15, "messages": [{"role": "user", "content": text}], **fields}


def plain(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_unset=True)


def error_of(answer, status, kind):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"type", "error"}
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    return body["error"]["message"]


def events_of(text: str) -> list[Any]:
    *events, end = text.split("\n\n")
    assert end == ""
    parsed = []
    for event in events:
        kind, data = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {parsed[-1]['type']}"
    return parsed


def test_a_message(client, shared_front):
    raw = client.messages.with_raw_response.create(**asked("one two three four", max_tokens=4))
    message = raw.parse()
    assert raw.headers["request-id"] == message.id
    assert message.id.startswith("msg_")
    assert plain(message) | {"id": ""} == {
        "id": "", "type": "message", "role": "assistant", "model": "scripted",
        "content": [{"type": "text", "text": "Once upon a tïme", "citations": None}],
        "stop_reason": "max_tokens", "stop_sequence": None,
        "usage": {
            "input_tokens": 2, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 0, "output_tokens": 4,
            "output_tokens_details": {"thinking_tokens": 0},
        },
    }  # fmt: skip
    assert shared_front.last_request.sampling.max_tokens == 4


def test_thinking_text_and_calls(client):
    message = client.messages.create(**asked("call", tools=[LOOK]))
    assert message.stop_reason == "tool_use"
    thinking, text, first, second = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "They want the weather.")
    assert thinking.signature
    assert (text.type, text.text) == ("text", "I look.")
    assert (first.type, first.id, first.name, first.input) == ("tool_use", "call_1", "look", {"city": "Paris"})
    assert (second.type, second.id, second.name, second.input) == ("tool_use", "call_2", "wait", {})
    assert message.usage.output_tokens_details.thinking_tokens == 2


def told(*chunks: pb.GenerateChunk) -> list[dict[str, Any]]:
    """The content of an answer of these chunks, which its events tell of as well."""
    answers = []
    for stream in (False, True):
        answer = MessageAnswer(MessagesRequest(**asked("x", tools=[LOOK], stream=stream)), "scripted")
        last = pb.GenerateChunk(finish=pb.Finish(reason=pb.FINISH_REASON_STOP))
        answer.add([*chunks, last])
        answers.append(answer)
    content: list[dict[str, Any]] = json.loads(answers[0].body(), parse_constant=pytest.fail)["content"]
    blocks: dict[int, list[str]] = {}
    for event in events_of(answers[1].events().decode()):
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
            blocks.setdefault(event["index"], []).append(event["delta"]["partial_json"])
    calls = [place for place, block in enumerate(content) if block["type"] == "tool_use"]
    assert [*blocks] == [place for place in calls if content[place]["input"]]
    for place, pieces in blocks.items():
        assert json.loads("".join(pieces)) == content[place]["input"]
    return content


def call_of(arguments: str, index: int = 0, name: str = "") -> pb.ToolCallDelta:
    return pb.ToolCallDelta(index=index, id=f"call_{index}" if name else "", name=name, arguments=arguments)


def test_a_chunk_may_end_a_call_and_go_on_with_text_and_another():
    first, text, second = told(
        pb.GenerateChunk(tool_calls=[call_of('{"a": ', name="look")]),
        pb.GenerateChunk(tool_calls=[call_of("1"), call_of("}"), call_of('{"b"', 1, "look")], text="And then"),
        pb.GenerateChunk(tool_calls=[call_of(": 2}", 1)]),
    )
    assert (first["id"], first["name"], first["input"]) == ("call_0", "look", {"a": 1})
    assert text["text"] == "And then"
    assert (second["id"], second["name"], second["input"]) == ("call_1", "look", {"b": 2})


def test_inputs_are_objects_of_json():
    """Whatever the model writes."""
    answer = MessageAnswer(MessagesRequest(**asked("x", tools=[LOOK])), "scripted")
    written = ('{"x": NaN, "y": [-Infinity]}', "[1, 2]", "", '{"whole": 1, "cut": "o')
    answer.add([pb.GenerateChunk(tool_calls=[call_of(one, i, "look")]) for i, one in enumerate(written)])
    answer.add([pb.GenerateChunk(finish=pb.Finish(reason=pb.FINISH_REASON_STOP))])
    content = json.loads(answer.body(), parse_constant=pytest.fail)["content"]
    assert [block["input"] for block in content] == [{"x": None, "y": [None]}, {}, {}, {"whole": 1}]


def test_the_engines_errors_name_what_the_dialect_has():
    answer = MessageAnswer(MessagesRequest(**asked("x")), "scripted")
    message = "thinking_token_budget: name them in thinking_token_ids; stop: (--max-stop-strings)"
    with pytest.raises(ApiError) as raised:
        answer.add([pb.GenerateChunk(error=pb.Error(code=3, message=message, param="thinking_token_budget"))])
    assert raised.value.message == (
        "thinking.budget_tokens: name them in thinking_token_ids; stop_sequences: (--max-stop-strings)"
    )
    assert raised.value.param == "thinking.budget_tokens"


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("text", ["slow", "call"])
def test_the_events_of_a_stream_are_the_whole(client, shared_front, text, limit):
    whole = client.messages.create(**asked(text, max_tokens=limit))
    with client.messages.stream(**asked(text, max_tokens=limit)) as stream:
        final = stream.get_final_message()
    content = [
        {name: value for name, value in plain(block).items() if name != "parsed_output"} for block in final.content
    ]
    assert content == plain(whole)["content"]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    events = events_of(shared_front.post(MESSAGES, **asked(text, max_tokens=limit, stream=True)).text)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            index, is_open = index + 1, True
        assert is_open
        assert event["index"] == index
        is_open = event["type"] != "content_block_stop"
    assert index == len(whole.content) - 1
    assert not is_open


async def test_the_async_client(shared_front):
    async with anthropic.AsyncAnthropic(base_url=shared_front.url, api_key="none", max_retries=0) as client:
        whole = await client.messages.create(**asked("slow"))
        async with client.messages.stream(**asked("slow")) as stream:
            texts = [text async for text in stream.text_stream]
        assert len(texts) > 1
        assert "".join(texts) == whole.content[0].text


def test_how_it_stopped(client, shared_front):
    stopped = client.messages.create(**asked("stop there", stop_sequences=["was"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "was")
    assert list(shared_front.last_request.sampling.stop) == ["was"]
    ended = client.messages.create(**asked("end STOP"))
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)
    full = client.messages.create(**asked("end LENGTH"))  # short of max_tokens
    assert full.stop_reason == "model_context_window_exceeded"


def test_thinking_that_is_not_shown(client):
    fields = asked("call", thinking={"type": "adaptive", "display": "omitted"})
    message = client.messages.create(**fields)
    assert message.content[0].thinking == ""
    with client.messages.stream(**fields) as stream:
        assert not any(event.type == "thinking" for event in stream)
        assert plain(stream.get_final_message().content[0]) == plain(message.content[0])


def test_turns_reach_the_engine(client, shared_front):
    error, text = f"no {random.random()}", f"so {random.random()}"
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I "},
            {"type": "text", "text": "look."}, {"type": "tool_use", "id": "c1", "name": "look", "input": {"city": "ï"}},
            {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
            {"type": "tool_result", "tool_use_id": "c2", "content": error, "is_error": True},
            {"type": "text", "text": text},
        ]},
    ]  # fmt: skip
    system = [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}]
    client.messages.create(model="scripted", max_tokens=1, messages=messages, system=system, tools=[LOOK])
    chat = shared_front.last_request.chat
    assert [(m.role, m.content or "|".join(part.text for part in m.parts)) for m in chat.messages] == [
        ("system", "be brief\nbe kind"), ("user", "a|b"), ("assistant", "I look."), ("tool", "rain"),
        ("tool", f"Error: {error}"), ("user", text),
    ]  # fmt: skip
    assert chat.messages[2].reasoning == "hm"
    calls = [(call.id, call.name, call.arguments) for call in chat.messages[2].tool_calls]
    assert calls == [("c1", "look", '{"city": "ï"}'), ("c2", "look", "{}")]
    assert [message.tool_call_id for message in chat.messages[3:5]] == ["c1", "c2"]
    function = {"name": "look", "description": "d", "parameters": LOOK["input_schema"]}
    assert json.loads(chat.tools[0]) == {"type": "function", "function": function}
    assert not chat.continue_final_message


def test_an_answer_that_is_begun_is_gone_on_with(client, shared_front):
    messages = [USER, {"role": "assistant", "content": "Once"}]
    client.messages.create(model="scripted", max_tokens=1, messages=messages)
    assert shared_front.last_request.chat.continue_final_message


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"type": "auto"}, pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)),
        ({"type": "none"}, pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)),
        ({"type": "any"}, pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
        ({"type": "tool", "name": "look"}, pb.ToolChoice(function="look")),
    ],
)
def test_tool_choice_reaches_the_engine(client, shared_front, given, sent):
    for parallel in (True, False):
        choice = given if given["type"] == "none" else {**given, "disable_parallel_tool_use": not parallel}
        client.messages.create(**asked("x", tools=[LOOK], tool_choice=choice, max_tokens=1))
        assert shared_front.last_request.chat.tool_choice == sent
        assert shared_front.last_request.chat.parallel_tool_calls == (parallel or given["type"] == "none")


def test_parameters_reach_the_engine(client, shared_front):
    client.messages.create(
        **asked("x", max_tokens=9),
        thinking={"type": "enabled", "budget_tokens": 5}, output_config={"effort": "low"},
        extra_body={"temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "seed": 7},
    )  # fmt: skip
    sampling = shared_front.last_request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 3, 0.125)
    assert (sampling.seed, sampling.thinking_token_budget) == (7, 5)
    variables = dict(shared_front.last_request.chat.template_kwargs)
    assert variables == {"enable_thinking": True, "reasoning_effort": "low"}
    client.messages.create(**asked("x", max_tokens=1, thinking={"type": "disabled"}))
    assert dict(shared_front.last_request.chat.template_kwargs) == {"enable_thinking": False}


def test_a_form_reaches_the_engine(client, shared_front):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    client.messages.create(
        **asked("x", max_tokens=1), output_config={"format": {"type": "json_schema", "schema": schema}}
    )
    assert json.loads(shared_front.last_request.sampling.structured_outputs.json) == schema


def test_count_tokens(client):
    counted = client.messages.count_tokens(
        model="scripted", messages=[{"role": "user", "content": "a b c"}], system="d"
    )
    assert counted.input_tokens == 4


def test_silence_is_filled(front, monkeypatch):
    monkeypatch.setattr("jaxllm.server.http.generation.IDLE_SECONDS", 0.005)
    events = events_of(front.post(MESSAGES, **asked("slow", max_tokens=5, stream=True)).text)
    assert sum(event["type"] == "ping" for event in events) > 2
    assert events[-1]["type"] == "message_stop"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages: must be a list"),
    ({"messages": []}, "not empty"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages[0].content[0] of type 'image' is not supported"),
    ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "'document'"),
    ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": ""}]}]}, "'thinking'"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id: field required"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c",
                                                 "content": [{"type": "image"}]}]}]}, "content[0] of type 'image'"),
    ({"messages": [{**USER, "contents": 1}]}, "unknown field 'contents'; did you mean 'content'?"),
    ({"system": 3}, "system: must be a string or a list"),
    ({"system": [{"type": "image"}]}, "'image'"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0] of type 'web_search_20250305'"),
    ({"tools": [{"name": "x"}]}, "tools[0].input_schema: field required"),
    ({"tools": [LOOK, LOOK]}, "two functions of the name 'look'"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": -1}, "must not be negative"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
    ({"container": "c"}, "container is not supported"),
    ({"mcp_servers": []}, "unknown field 'mcp_servers'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
    ({"stop_sequences": ["\ud800"]}, "stop_sequences: holds half of a surrogate pair"),
    ({"\ud800": 1}, "unknown field"),
    ({"tool_choice": {"type": "auto", "name": "look"}}, "tool_choice: name says nothing where type is 'auto'"),
    ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking: budget_tokens says nothing"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, "thinking: budget_tokens says nothing"),
    ({"chat_template_kwargs": {"x": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}}, "nested more than 16 deep"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), BAD, ids=lambda value: ascii(value)[:50])
def test_what_is_refused(shared_front, fields, says):
    body = json.dumps(asked("x") | fields)
    answer = shared_front.client.post(MESSAGES, content=body, headers={"content-type": "application/json"})
    message = error_of(answer, 400, "invalid_request_error")
    assert says in message, message


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (3, 400, "invalid_request_error"), (5, 404, "not_found_error"), (8, 429, "rate_limit_error"),
        (13, 500, "api_error"), (14, 503, "overloaded_error"), (4, 504, "timeout_error"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_refusals_have_their_form(shared_front, code, status, kind, stream):
    answer = shared_front.post(MESSAGES, **asked(f"fail {code}", stream=stream))
    assert error_of(answer, status, kind) == "as scripted"


def test_errors_of_the_path_have_their_form(shared_front):
    error_of(shared_front.get(MESSAGES), 405, "invalid_request_error")
    error_of(shared_front.get(f"{MESSAGES}/x/y"), 404, "not_found_error")
    assert "type" not in shared_front.get("/v1/messagesx").json()


def test_an_error_in_the_midst_of_a_stream(client):
    with pytest.raises(anthropic.APIStatusError, match="as scripted"):
        list(client.messages.create(**asked("fail 13 after 2", stream=True)))


def test_a_client_that_leaves_ends_its_request(front):
    with front.client.stream("POST", MESSAGES, json=asked("slow", stream=True)) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: message_start"
        assert front.engine.running == 1
    front.wait(lambda: front.engine.running == 0)
    assert len(front.engine.aborted) == 1
