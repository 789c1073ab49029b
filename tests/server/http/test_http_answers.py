"""What the front makes of the engine's chunks: OpenAI's JSON and events, and what it asks the engine for."""

import codecs
import json

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.answers import ChatAnswer, CompletionAnswer
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.requests import CompletionRequest

MESSAGES = [{"role": "user", "content": "say something"}]
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


def last_request(front):
    return list(front.engine.requests.values())[-1]


def text_of(events):
    return "".join(choice["text"] for event in events for choice in event["choices"])


def content_of(events):
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


def test_completion(shared_front):
    answer = shared_front.post(COMPLETIONS, prompt="one two three four", max_tokens=4, model="scripted")
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("cmpl-")
    assert answer.headers["x-request-id"] == body["id"]
    assert body["object"] == "text_completion"
    assert body["model"] == "scripted"
    assert body["choices"] == [
        {"index": 0, "text": "Once upon a tïme", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ]
    assert body["usage"] == {
        "prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2},
    }  # fmt: skip


def test_chat(shared_front):
    body = shared_front.post(CHAT, messages=MESSAGES, max_completion_tokens=3).json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Once upon a", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None


@pytest.mark.parametrize(
    ("prompt", "texts", "ids"),
    [
        ("a b", ["a b"], []),
        (["a b", "c"], ["a b", "c"], []),
        ([5, 6, 7], [], [[5, 6, 7]]),
        ([[5, 6], [7]], [], [[5, 6], [7]]),
    ],
)
def test_every_form_of_prompt(shared_front, prompt, texts, ids):
    body = shared_front.post(COMPLETIONS, prompt=prompt, max_tokens=2).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(len(texts or ids)))
    assert {choice["text"] for choice in body["choices"]} == {"Once upon"}
    asked = list(shared_front.engine.requests.values())[-len(texts or ids) :]
    assert [request.text for request in asked if request.text] == texts
    assert [list(request.token_ids.ids) for request in asked if request.HasField("token_ids")] == ids
    assert body["usage"]["completion_tokens"] == 2 * len(body["choices"])


def test_stop_is_reported(shared_front):
    (choice,) = shared_front.post(COMPLETIONS, prompt="stop there", stop="was").json()["choices"]
    assert choice["text"] == "Once upon a tïme, there "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "was")
    assert list(last_request(shared_front).sampling.stop) == ["was"]


def test_completion_stream(shared_front):
    events = shared_front.events(COMPLETIONS, prompt="x", max_tokens=15)
    whole = shared_front.post(COMPLETIONS, prompt="x", max_tokens=15).json()
    assert text_of(events) == whole["choices"][0]["text"] == 'Once upon a tïme, there was a "cat" in the hat.'
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["length"]
    assert len({event["id"] for event in events}) == 1
    assert not any("usage" in event for event in events)


def test_chat_stream_with_usage(shared_front):
    events = shared_front.events(CHAT, messages=MESSAGES, max_tokens=5, stream_options={"include_usage": True})
    first, *_, last = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert content_of(events) == "Once upon a tïme,"
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 7


def test_usage_in_every_event(shared_front):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = shared_front.events(COMPLETIONS, prompt="slow", max_tokens=4, stream_options=options)
    counted = [event["usage"]["completion_tokens"] for event in events]
    assert counted == sorted(counted)
    assert counted[0] >= 1
    assert counted[-1] == 4


def test_tokens_without_text_are_told_of_when_they_come(shared_front):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *events, last = shared_front.events(COMPLETIONS, prompt="mute", max_tokens=4, stream_options=options)
    assert {event["choices"][0]["text"] for event in events} == {""}
    assert [event["usage"]["completion_tokens"] for event in events][-1] == 4
    assert len(events) > 1
    assert last["choices"] == []


def test_stream_of_several_prompts(shared_front):
    events = shared_front.events(COMPLETIONS, prompt=["slow", "x", "slow"], max_tokens=5)
    texts, ends = ["", "", ""], [0, 0, 0]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            ends[choice["index"]] += choice["finish_reason"] == "length"
    assert texts == ["Once upon a tïme,"] * 3
    assert ends == [1, 1, 1]


def test_completion_logprobs(shared_front):
    logprobs = shared_front.post(COMPLETIONS, prompt="x", max_tokens=3, logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["Once", " upon", " a"],
        "token_logprobs": [-0.125] * 3,
        "top_logprobs": [
            {"Once": -0.125, " upon": -0.25}, {" upon": -0.125, " a": -0.25}, {" a": -0.125, " tïme": -0.25},
        ],
        "text_offset": [0, 4, 9],
    }  # fmt: skip


def test_completion_logprobs_in_a_stream(shared_front):
    whole = shared_front.post(COMPLETIONS, prompt="slow", max_tokens=6, logprobs=0).json()["choices"][0]["logprobs"]
    events = shared_front.events(COMPLETIONS, prompt="slow", max_tokens=6, logprobs=0)
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert len(parts) > 1
    assert {key: [item for part in parts for item in part[key]] for key in whole} == whole
    assert whole["top_logprobs"][0] == {"Once": -0.125}


def test_chat_logprobs(shared_front):
    asked = {"messages": MESSAGES, "max_tokens": 4, "logprobs": True, "top_logprobs": 1}
    logprobs = shared_front.post(CHAT, **asked).json()["choices"][0]["logprobs"]
    fourth = {"token": " tïme", "logprob": -0.125, "bytes": list(" tïme".encode())}
    assert logprobs["content"][3] == {**fourth, "top_logprobs": [fourth]}
    assert logprobs["refusal"] is None
    events = shared_front.events(CHAT, **asked)
    parts = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    assert [entry for part in parts for entry in part["content"]] == logprobs["content"]
    plain = shared_front.post(CHAT, messages=MESSAGES, max_tokens=1, logprobs=True).json()["choices"][0]["logprobs"]
    assert plain["content"][0]["top_logprobs"] == []


def test_prompt_logprobs(shared_front):
    completion = shared_front.post(COMPLETIONS, prompt=[3, 4], max_tokens=1, prompt_logprobs=1).json()
    expected = [None, {"4": {"logprob": -0.125, "rank": 1, "decoded_token": ","}}]
    assert completion["choices"][0]["prompt_logprobs"] == expected
    chat = shared_front.post(CHAT, messages=MESSAGES, max_tokens=1, prompt_logprobs=0).json()
    assert chat["prompt_logprobs"][0] is None
    assert len(chat["prompt_logprobs"]) == 2


def test_token_ids(shared_front):
    body = shared_front.post(COMPLETIONS, prompt=[9, 8], max_tokens=3, return_token_ids=True).json()
    assert body["choices"][0]["token_ids"] == [0, 1, 2]
    assert body["choices"][0]["prompt_token_ids"] == [9, 8]
    events = shared_front.events(COMPLETIONS, prompt=[9, 8], max_tokens=3, return_token_ids=True)
    assert events[0]["choices"][0]["prompt_token_ids"] == [9, 8]
    assert [token for event in events for token in event["choices"][0]["token_ids"]] == [0, 1, 2]


def test_unset_fields_stay_unset(shared_front):
    shared_front.post(COMPLETIONS, prompt="x")
    assert [field.name for field, _ in last_request(shared_front).sampling.ListFields()] == ["max_tokens"]
    assert last_request(shared_front).sampling.max_tokens == 16
    silent, own = CompletionRequest(prompt="x"), CompletionRequest(prompt="x", max_tokens=3)
    limits = [body.with_default(operators).token_limit for body in (silent, own) for operators in (0, 7)]
    assert limits == [16, 7, 3, 3]
    shared_front.post(CHAT, messages=MESSAGES)
    assert last_request(shared_front).sampling.ListFields() == []


def test_every_sampling_field_reaches_the_engine(shared_front):
    sampling = {
        "temperature": 0.5, "top_p": 0.25, "top_k": -1, "min_p": 0.125, "repetition_penalty": 1.5,
        "frequency_penalty": -0.5, "presence_penalty": 2, "seed": 7, "stop": ["a", "b"], "stop_token_ids": [3],
        "max_tokens": 5, "min_tokens": 2, "ignore_eos": True, "include_stop_str_in_output": True,
        "skip_special_tokens": False, "logprobs": 3, "prompt_logprobs": 1,
    }  # fmt: skip
    answer = shared_front.post(
        COMPLETIONS, prompt="x", priority=-2, cache_salt="mine", add_special_tokens=False, **sampling
    )
    assert answer.status_code == 200, answer.text
    request = last_request(shared_front)
    for name, value in sampling.items():
        sent = getattr(request.sampling, name)
        assert (list(sent) if isinstance(value, list) else sent) == value, name
    assert (request.priority, request.cache_salt, request.add_special_tokens) == (-2, "mine", False)


def test_a_negative_seed_is_a_seed(shared_front):
    assert shared_front.post(COMPLETIONS, prompt="x", seed=-1).status_code == 200
    assert last_request(shared_front).sampling.seed == 2**63 - 1


def test_messages_reach_the_engine(shared_front):
    parts = [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "Sure", "refusal": None, "annotations": [], "tool_calls": None},
    ]
    answer = shared_front.post(
        CHAT, messages=messages, continue_final_message=True, add_generation_prompt=False,
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    chat = last_request(shared_front).chat
    assert [(message.role, message.content, message.name) for message in chat.messages] == [
        ("system", "be brief", ""), ("user", "", "ann"), ("assistant", "Sure", ""),
    ]  # fmt: skip
    assert [part.text for part in chat.messages[1].parts] == ["two", "parts"]
    assert chat.continue_final_message
    assert dict(chat.template_kwargs) == {"enable_thinking": False, "add_generation_prompt": False}


def test_refusals_are_what_the_assistant_said(shared_front):
    breakpoint = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    text, refusal = {"type": "text", "text": "Hm."}, {"type": "refusal", "refusal": "No."}
    said = [
        {"content": [text | breakpoint, refusal]},
        {"content": [refusal]},
        {"content": None, "refusal": "No."},
        {"content": "Hm.", "refusal": "No."},
        {"content": [text], "refusal": "No."},
        {"content": "Hm.", "refusal": ""},
    ]
    asked = {"role": "user", "content": [{"type": "text", "text": "say", **breakpoint}]}
    messages = [asked, *({"role": "assistant", **turn} for turn in said)]
    answer = shared_front.post(CHAT, messages=messages, max_tokens=1, verbosity="medium")
    assert answer.status_code == 200, answer.text
    wire = last_request(shared_front).chat.messages
    assert [[part.text for part in message.parts] or message.content for message in wire] == [
        ["say"], ["Hm.", "No."], ["No."], "No.", ["Hm.", "No."], ["Hm.", "No."], "Hm.",
    ]  # fmt: skip


def test_tools_reach_the_engine(shared_front):
    function = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"z": 1}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    fields = {
        "tools": [{"type": "function", "function": {**function, "strict": True}}],
        "documents": [{"title": "t", "text": "d"}],
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    }
    assert shared_front.post(CHAT, messages=messages, **fields).status_code == 200
    chat = last_request(shared_front).chat
    assert [(call.id, call.name, call.arguments) for call in chat.messages[1].tool_calls] == [
        ("c1", "look", '{"z": 1}')
    ]
    assert (chat.messages[1].reasoning, chat.messages[2].tool_call_id) == ("hm", "c1")
    assert list(chat.tools) == [json.dumps({"type": "function", "function": function})]
    assert list(chat.documents) == [json.dumps({"title": "t", "text": "d"})]
    assert chat.HasField("parallel_tool_calls")
    assert not chat.parallel_tool_calls
    assert dict(chat.template_kwargs) == {"reasoning_effort": "low"}
    assert not chat.HasField("tool_choice")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("auto", pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)),
        ("none", pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)),
        ("required", pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)),
        ({"type": "function", "function": {"name": "look"}}, pb.ToolChoice(function="look")),
    ],
)
def test_tool_choice_reaches_the_engine(given, sent, shared_front):
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert shared_front.post(CHAT, messages=MESSAGES, tools=tools, tool_choice=given).status_code == 200
    assert last_request(shared_front).chat.tool_choice == sent


CALLS = [
    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Paris"}'}},
    {"id": "call_2", "type": "function", "function": {"name": "wait", "arguments": "{}"}},
]


def test_an_answer_with_reasoning_and_calls(shared_front):
    answer = shared_front.post(CHAT, messages=[{"role": "user", "content": "call"}]).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant", "content": "I look.", "refusal": None, "tool_calls": CALLS,
        "reasoning_content": "They want the weather.", "reasoning": "They want the weather.",
    }  # fmt: skip


def test_content_is_null_where_an_answer_has_other_parts_alone(shared_front):
    answer = shared_front.post(CHAT, messages=[{"role": "user", "content": "call"}], max_tokens=1).json()
    (choice,) = answer["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "They want "
    assert choice["finish_reason"] == "length"


def test_a_call_that_is_cut_off_ends_with_length(shared_front):
    answer = shared_front.post(CHAT, messages=[{"role": "user", "content": "call"}], max_tokens=5).json()
    (choice,) = answer["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Pa'
    assert choice["finish_reason"] == "length"


def test_events_with_reasoning_and_calls(shared_front):
    events = shared_front.events(CHAT, messages=[{"role": "user", "content": "call"}])
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "They want the weather."
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "They want the weather."
    assert content_of(events) == "I look."
    calls: dict[int, dict] = {}
    for delta in [call for each in deltas for call in each.get("tool_calls", ())]:
        if delta["index"] not in calls:
            calls[delta["index"]] = {"id": delta["id"], "type": delta["type"], "function": delta["function"]}
        else:
            assert delta.keys() == {"index", "function"}
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    assert list(calls.values()) == CALLS
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])


@pytest.mark.parametrize("joined", range(2**5))
def test_calls_whose_chunks_come_together(joined):
    """Where the reader is late, several chunks make one event: OpenAI's client sees the same calls begin and end."""
    chunks = [
        pb.GenerateChunk(text="I look.", token_ids=[0]),
        pb.GenerateChunk(token_ids=[1], tool_calls=[pb.ToolCallDelta(index=0, id="call_1", name="look")]),
        pb.GenerateChunk(token_ids=[2], tool_calls=[pb.ToolCallDelta(index=0, arguments='{"city": ')]),
        pb.GenerateChunk(token_ids=[3], tool_calls=[pb.ToolCallDelta(index=0, arguments='"Paris"}')]),
        pb.GenerateChunk(token_ids=[4], tool_calls=[pb.ToolCallDelta(index=1, id="call_2", name="wait")]),
        pb.GenerateChunk(
            token_ids=[5],
            tool_calls=[pb.ToolCallDelta(index=1, arguments="{}")],
            finish=pb.Finish(reason=pb.FINISH_REASON_STOP),
        ),
    ]
    answer = ChatAnswer(ChatRequest(messages=MESSAGES, stream=True, return_token_ids=True), "scripted")
    written = b""
    for place, chunk in enumerate(chunks):
        chunk.request_id = answer.requests[0].request_id
        answer.add([chunk])
        if place == len(chunks) - 1 or not joined >> place & 1:
            written += answer.events()
    events = [json.loads(line.removeprefix("data: ")) for line in written.decode().splitlines() if line]
    state = ChatCompletionStreamState()
    done = []
    for event in events:
        parts = [part["index"] for part in event["choices"][0]["delta"].get("tool_calls", ())]
        assert len(parts) == len(set(parts))
        told = state.handle_chunk(ChatCompletionChunk.model_validate(event))
        done += [each.arguments for each in told if each.type == "tool_calls.function.arguments.done"]
    assert done == [call["function"]["arguments"] for call in CALLS]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["tool_calls"]
    assert [token for event in events for token in event["choices"][0].get("token_ids", ())] == list(range(6))
    (choice,) = state.get_final_completion().choices
    assert choice.message.content == "I look."
    got = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    assert got == [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in CALLS]


def test_reasoning_is_left_out_where_it_is_not_wanted(shared_front):
    body = {"messages": [{"role": "user", "content": "call"}], "include_reasoning": False}
    answer = shared_front.post(CHAT, **body).json()
    assert "reasoning" not in json.dumps(answer["choices"])
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert "reasoning" not in json.dumps([event["choices"] for event in shared_front.events(CHAT, **body)])


def test_neutral_values_and_ignored_fields_are_accepted(shared_front):
    common = {
        "n": 1, "stream": False, "stream_options": None, "logit_bias": {}, "user": "u", "metadata": {"a": "b"},
        "store": True, "response_format": {"type": "text"}, "temperature": None, "stop": None,
    }  # fmt: skip
    completion = shared_front.post(COMPLETIONS, prompt="x", echo=False, best_of=1, suffix=None, **common)
    assert completion.status_code == 200, completion.text
    chat = shared_front.post(
        CHAT, messages=MESSAGES, tools=[], tool_choice="none", parallel_tool_calls=True, service_tier="auto",
        modalities=["text"], safety_identifier="s", prompt_cache_key="k", **common,
    )  # fmt: skip
    assert chat.status_code == 200, chat.text


def test_tokenize_and_detokenize(shared_front):
    assert shared_front.post("/tokenize", prompt="a b c", return_token_strs=True).json() == {
        "count": 3, "max_model_len": 64, "tokens": [0, 1, 2], "token_strs": ["a", "b", "c"],
    }  # fmt: skip
    assert shared_front.post("/tokenize", messages=MESSAGES).json() == {
        "count": 2, "max_model_len": 64, "tokens": [0, 1], "token_strs": None,
    }  # fmt: skip
    assert shared_front.post("/detokenize", tokens=[0, 1]).json() == {"prompt": "Once upon"}


def test_models_and_version(shared_front):
    listed = shared_front.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["scripted", "other-name"]
    assert listed["data"][0] == shared_front.get("/v1/models/scripted").json()
    assert listed["data"][0]["max_model_len"] == 64
    assert shared_front.get("/version").json() == {"version": "1.2.3"}


def test_several_choices_of_one_prompt(shared_front):
    body = shared_front.post(COMPLETIONS, prompt=["one two", "three"], max_tokens=2, n=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in body["choices"]] == ["Once upon"] * 4
    assert last_request(shared_front).sampling.n == 2
    assert body["usage"]["prompt_tokens"] == 3, "each prompt counts once"
    assert body["usage"]["completion_tokens"] == 8
    chat = shared_front.post(CHAT, messages=MESSAGES, max_tokens=1, n=3, prompt_logprobs=0).json()
    assert [choice["message"]["content"] for choice in chat["choices"]] == ["Once"] * 3
    assert len(chat["prompt_logprobs"]) == 2


def test_several_choices_in_a_stream(shared_front):
    events = shared_front.events(CHAT, messages=MESSAGES, max_tokens=3, n=2)
    for index in range(2):
        own = [e for e in events if e["choices"][0]["index"] == index]
        assert own[0]["choices"][0]["delta"]["role"] == "assistant"
        assert content_of(own) == "Once upon a"
        assert own[-1]["choices"][0]["finish_reason"] == "length"


def test_parameters_that_are_no_plain_numbers_reach_the_engine(shared_front):
    shared_front.post(
        COMPLETIONS, prompt="x", max_tokens=1, best_of=2, logit_bias={"5": -1.5}, bad_words=["a", "b c"],
        bad_words_ids=[[1, 2]], allowed_token_ids=[3, 4], thinking_token_budget=0, thinking_token_ids=[7, 8],
        truncate_prompt_tokens=-1, logits_processors={"own": {"a": [1, 2.5, None]}}, early_stopping="never",
    )  # fmt: skip
    sampling = last_request(shared_front).sampling
    assert sampling.best_of == 2
    assert dict(sampling.logit_bias) == {5: -1.5}
    assert list(sampling.bad_words) == ["a", "b c"]
    assert [list(word.ids) for word in sampling.bad_words_ids] == [[1, 2]]
    assert list(sampling.allowed_token_ids.ids) == [3, 4]
    assert (sampling.thinking_token_budget, list(sampling.thinking_token_ids.ids)) == (0, [7, 8])
    assert sampling.truncate_prompt_tokens == -1
    assert json.loads(sampling.logits_processors["own"]) == {"a": [1, 2.5, None]}
    assert sampling.early_stopping == pb.EARLY_STOPPING_NEVER


def test_echo_tells_of_the_prompts_log_probabilities_too(shared_front):
    body = shared_front.post(COMPLETIONS, prompt="one two three", max_tokens=2, echo=True, logprobs=1).json()
    sampling = last_request(shared_front).sampling
    assert (sampling.echo, sampling.prompt_logprobs) == (True, 1)
    logprobs = body["choices"][0]["logprobs"]
    assert body["choices"][0]["text"] == "Once upon aOnce upon"  # as the scripted engine's prompts go
    assert logprobs["tokens"] == ["Once", " upon", " a", "Once", " upon"]
    assert logprobs["text_offset"] == [0, 4, 9, 11, 15]
    shared_front.post(COMPLETIONS, prompt="one", max_tokens=1, echo=True)
    assert not last_request(shared_front).sampling.HasField("prompt_logprobs")


def entry(raw: bytes, rank: int = 1) -> pb.TokenLogprob:
    return pb.TokenLogprob(token=raw.decode(errors="replace"), token_bytes=raw, rank=rank)


def pieces(character: str) -> list[bytes]:
    """A token of each of its bytes."""
    return [bytes([byte]) for byte in character.encode()]


SPREAD = [b"h", *pieces("é"), b"llo ", *pieces("😀"), b" w", b"\xc3", b"\xb6r", b"ld"]  # text: héllo 😀 wörld
PLACES = [0, 1, 1, 2, 6, 6, 6, 6, 7, 9, 9, 11]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("before", "echo", "places"),
    [
        ([], "", []),
        ([b"Hi", b"!"], "Hi!", [0, 2]),
        ([b"<s>", b"Hi", b"!"], "Hi!", [0, 0, 2]),
        ([b"<a>", b"<b>", b" Hi", b"!"], "Hi!", [0, 0, 0, 2]),
        ([b"<s>", b" Hi", b"!"], " Hi!", [0, 0, 3]),
        ([b" ", b"Hi", b"!"], "Hi!", [0, 0, 2]),
        ([b"\xf0\x9f", b"\x98\x80", b"!"], "😀!", [0, 0, 1]),
        ([b"Hi", b"\xf0\x9f"], "Hi\ufffd", [0, 2]),
    ],
)
def test_offsets_are_places_in_the_text(stream, before, echo, places):
    """However chunks cut characters, and whatever of the prompt's tokens is not in the text."""
    request = CompletionRequest(prompt="x", echo=bool(echo), logprobs=0, stream=stream)
    answer, events = CompletionAnswer(request, "m"), b""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    for index, piece in enumerate(SPREAD):
        chunk = pb.GenerateChunk(text=decode(piece), token_ids=[index], logprobs=[entry(piece)])
        if index == 0:
            chunk.text = echo + chunk.text
            chunk.prompt_logprobs.extend(entry(piece, min(rank, 1)) for rank, piece in enumerate(before))
        if index == len(SPREAD) - 1:
            chunk.finish.reason = pb.FINISH_REASON_LENGTH
        chunk.request_id = answer.requests[0].request_id
        answer.add([chunk])
        events += answer.events() if stream else b""
    parts = events.decode().split("\n\n")[:-1] if stream else [f"data: {answer.body().decode()}"]
    choices = [json.loads(part.removeprefix("data: "))["choices"][0] for part in parts]
    assert "".join(choice["text"] for choice in choices) == f"{echo}héllo 😀 wörld"
    offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
    assert offsets == [*places, *(len(echo) + place for place in PLACES)]


SCORED = {
    "tokens": ["Once", " upon", " a"],
    "token_logprobs": [None, -0.125, -0.125],
    "top_logprobs": [None, {" upon": -0.125}, {" a": -0.125}],
    "text_offset": [0, 4, 9],
}


@pytest.mark.parametrize("prompt", ["one two three", "over and over", [0, 1, 2]])
@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_is_scored_and_nothing_generated(shared_front, prompt, n):
    body = shared_front.post(
        COMPLETIONS, prompt=prompt, max_tokens=0, echo=True, logprobs=1, n=n, stop=["a"], return_token_ids=True
    ).json()
    sampling = last_request(shared_front).sampling
    assert (sampling.max_tokens, sampling.prompt_logprobs, sampling.detokenize) == (1, 1, False)
    assert [choice["index"] for choice in body["choices"]] == list(range(n))
    for choice in body["choices"]:
        assert (choice["text"], choice["logprobs"]) == ("Once upon a", SCORED)
        assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
        assert (choice["prompt_token_ids"], choice["token_ids"]) == ([0, 1, 2], [])
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 0)


def test_prompts_are_scored_in_a_stream(shared_front):
    asked = {"prompt": ["one two three", "over"], "max_tokens": 0, "echo": True, "n": 2}
    events = shared_front.events(COMPLETIONS, logprobs=1, stream_options={"include_usage": True}, **asked)
    assert events.pop()["usage"]["completion_tokens"] == 0
    expected = [("Once upon a", ["Once", " upon", " a"])] * 2 + [("Once", ["Once"])] * 2
    for index, (text, tokens) in enumerate(expected):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [token for choice in own if choice["logprobs"] for token in choice["logprobs"]["tokens"]] == tokens
        assert own[-1]["finish_reason"] == "length"
    plain = shared_front.events(COMPLETIONS, **asked)
    assert {(event["choices"][0]["text"], event["choices"][0]["logprobs"]) for event in plain} == {
        ("Once upon a", None), ("Once", None),
    }  # fmt: skip


def test_an_echo_that_comes_before_its_log_probabilities():
    request = CompletionRequest(prompt="x", max_tokens=0, echo=True, logprobs=0, stream=True)
    answer = CompletionAnswer(request, "m")
    entries = [pb.TokenLogprob(token=text, token_bytes=text.encode(), rank=rank) for rank, text in enumerate("abc")]
    events = b""
    for chunk in (
        pb.GenerateChunk(text="abc", prompt_logprobs=entries[:2]),
        pb.GenerateChunk(prompt_logprobs=entries[2:]),
        pb.GenerateChunk(token_ids=[7], finish=pb.Finish(reason=pb.FINISH_REASON_STOP, stop_token_id=7)),
    ):
        chunk.request_id = answer.requests[0].request_id
        answer.add([chunk])
        events += answer.events()
    first, last = (json.loads(event[6:])["choices"][0] for event in events.decode().split("\n\n")[:-1])
    assert (first["text"], first["logprobs"]) == ("abc", None)
    assert (last["text"], last["logprobs"]["tokens"], last["finish_reason"]) == ("", ["a", "b", "c"], "length")
