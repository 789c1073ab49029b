"""Every error in OpenAI's form with the right status, before and in the midst of a stream."""

import contextlib
import json
import re

import pytest

from jaxllm.config import ServerConfig

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    (key,) = answer.json()
    assert key == "error"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


BAD_COMPLETIONS = [
    ({}, "prompt", "field required"),
    ({"prompt": ""}, None, None),  # the engine's to judge: a tokenizer may add a token
    ({"prompt": []}, "prompt", "not empty"),
    ({"prompt": None}, "prompt", "must be a string"),
    ({"prompt": 3}, "prompt", "must be a string"),
    ({"prompt": ["a", 1]}, "prompt", "must be a string"),
    ({"prompt": [1, [2]]}, "prompt", "must be a string"),
    ({"prompt": [1, -2]}, "prompt", "-2 is not a token id"),
    ({"prompt": [1, 2.5]}, "prompt", "2.5 is not a token id"),
    ({"prompt": [True]}, "prompt", "True is not a token id"),
    ({"prompt": [2**32]}, "prompt", "is not a token id"),
    ({"max_tokens": 0}, "max_tokens", "at least 1; for the prompt and its log probabilities alone send echo=true"),
    ({"max_tokens": 0, "echo": False}, "max_tokens", "at least 1"),
    ({"max_tokens": -1, "echo": True}, "max_tokens", "at least 1"),
    ({"max_tokens": 0, "echo": True, "stop": [""]}, "stop", "non-empty"),
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"min_tokens": 17}, "min_tokens", "must not exceed max_tokens=16"),
    ({"temperature": -0.1}, "temperature", "must not be negative"),
    ({"temperature": "0.5"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "set temperature=0"),
    ({"top_p": 1.01}, "top_p", "(0, 1]"),
    ({"top_k": -2}, "top_k", "keep every token"),
    ({"top_k": 2**31}, "top_k", "2**31"),
    ({"min_p": 2}, "min_p", "[0, 1]"),
    ({"repetition_penalty": 0}, "repetition_penalty", "positive"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "[-2, 2]"),
    ({"presence_penalty": -3}, "presence_penalty", "[-2, 2]"),
    ({"seed": 2**63}, "seed", "2**63"),
    ({"stop": ""}, "stop", "non-empty"),
    ({"stop": ["a", 1]}, "stop.1", "string"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "token ids"),
    ({"logprobs": -1}, "logprobs", "negative"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"priority": 2**31}, "priority", "32-bit"),
    ({"n": 0}, "n", "must be in [1, 128]"),
    ({"n": 129}, "n", "must be in [1, 128]"),
    ({"n": 3, "best_of": 2}, "best_of", "n is 3"),
    ({"use_beam_search": True, "top_p": 0.5}, "top_p", "not with use_beam_search"),
    ({"use_beam_search": True, "early_stopping": "soon"}, "early_stopping", "True, False or 'never'"),
    ({"bad_words": [""]}, "bad_words", "non-empty"),
    ({"bad_words_ids": [[]]}, "bad_words_ids", "none of them empty"),
    ({"bad_words_ids": [list(range(9))]}, "bad_words", "at most 8"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "must leave a token"),
    ({"thinking_token_budget": -1}, "thinking_token_budget", "[0, 2**31)"),
    ({"thinking_token_ids": [1]}, "thinking_token_ids", "two token ids"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "must be positive"),
    ({"logits_processors": [1]}, "logits_processors", "dictionary"),
    ({"suffix": "."}, "suffix", "not supported"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "[-100, 100]"),
    ({"logit_bias": {"five": 10}}, "logit_bias", "token ids"),
    ({"logit_bias": {"-5": 10}}, "logit_bias", "token ids"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "must hold a schema"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs", "both"),
    ({"structured_outputs": {}}, "structured_outputs", "none of json, json_object"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex and choice are set"),
    ({"structured_outputs": {"jsn": {}}}, "jsn", "did you mean 'json'"),
    ({"guided_json": {}}, "guided_json", "unknown field 'guided_json'; send structured_outputs={'json': ...}"),
    ({"guided_choice": ["a"]}, "guided_choice", "send structured_outputs={'choice': ...}"),
    ({"guided_regex": "a"}, "guided_regex", "send structured_outputs={'regex': ...}"),
    ({"guided_grammar": "start: /a/"}, "guided_grammar", "send structured_outputs={'grammar': ...}"),
    ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids", "logprobs name tokens by their text; "),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
    ({"stream": True, "stream_options": {"include_usag": True}}, "include_usag", "did you mean 'include_usage'?"),
    ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", "without streaming"),
    ({"max_token": 5}, "max_token", "did you mean 'max_tokens'?"),
    ({"temprature": 5}, "temprature", "did you mean 'temperature'?"),
    ({"xyzzy": 5}, "xyzzy", "known: model, temperature"),
    ({"allowed_token_ids": [2**40]}, "allowed_token_ids", "value out of range: 1099511627776"),
    ({"bad_words_ids": [[2**40]]}, "bad_words_ids", "value out of range"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids", "value out of range"),
    ({"logprobs": 2**40}, "logprobs", "value out of range"),
    ({"truncate_prompt_tokens": 2**40}, "truncate_prompt_tokens", "value out of range"),
    (
        {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
        "response_format",
        "json_schema says nothing",
    ),
    ({"response_format": {"type": "json_object", "triggers": ["a"]}}, "response_format", "triggers says nothing"),
    ({"response_format": {"type": "structural_tag", "json_schema": {}}}, "response_format", "json_schema says nothing"),
]


@pytest.mark.parametrize(("fields", "param", "says"), BAD_COMPLETIONS, ids=lambda value: str(value)[:40])
def test_bad_completion(shared_front, fields, param, says):
    body = fields if "prompt" in fields or not fields else {"prompt": "x", **fields}
    answer = shared_front.post(COMPLETIONS, **body)
    if says is None:
        assert answer.status_code == 200
        return
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]


def nested(levels: int) -> object:
    value: object = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


BAD_CHATS = [
    ({}, "messages", "field required"),
    ({"messages": []}, "messages", "at least one"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": [{"content": "hi"}]}, "messages.0", "field required"),
    ({"messages": [{"role": "usr", "content": "hi"}]}, "messages", "must be one of developer, system"),
    ({"messages": [{"role": "function", "content": "hi"}]}, "messages", "send role 'tool'"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages", "string or a list"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", "reads text"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages", "content part"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "texts": "b"}]}]},
        "messages",
        "content part",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "a"}]}]}, "messages", "reads text"),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "text": "a"}]}]},
        "messages",
        "{'type': 'refusal'",
    ),
    ({"messages": [{**USER, "refusal": "a"}]}, "messages", "not of role 'user'"),
    ({"verbosity": "low"}, "verbosity", "'medium'"),
    ({"messages": [{"role": "user", "contents": "hi"}]}, "contents", "did you mean 'content'?"),
    ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages.0", "field required"),
    ({"tools": {}}, "tools", "must be a list"),
    ({"tools": [{"type": "function"}]}, "tools", "function.name=None"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools", "must be {'type': 'function'"),
    ({"documents": ["x"]}, "documents", "a list of objects"),
    ({"tool_choice": "always"}, "tool_choice", "must be 'auto', 'none', 'required'"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "must be 'auto', 'none', 'required'"),
    ({"functions": [{}]}, "functions", "not supported"),
    ({"audio": {"voice": "x"}}, "audio", "not supported"),
    ({"reasoning_effort": 3}, "reasoning_effort", "valid string"),
    ({"modalities": ["audio"]}, "modalities.0", "'text'"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "must hold a schema"),
    ({"n": 0}, "n", "must be in [1, 128]"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens=0: must be at least 1"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "top_logprobs=-1: must not be negative"),
    ({"logprobs": True, "use_beam_search": True}, "logprobs", "logprobs=0: not with"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 2**20}}}},
        "response_format",
        "response_format: json holds 1048588 characters",
    ),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "structured_outputs: choice holds 0 texts"),
    ({"echo": True}, "echo", "unknown field"),
    ({"top_logprobs": 2}, "top_logprobs", "only with logprobs=true"),
    ({"logprobs": 3}, "logprobs", "boolean"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "differ"),
    ({"echo": True}, "echo", "unknown field"),
    ({"chat_template_kwargs": 3}, "chat_template_kwargs", "dictionary"),
    ({"chat_template_kwargs": {"x": nested(17)}}, "chat_template_kwargs", "nested more than 16 deep"),
    ({"chat_template_kwargs": {"y": 1, "x": nested(90)}}, "chat_template_kwargs", "nested more than 16 deep"),
]


@pytest.mark.parametrize(("fields", "param", "says"), BAD_CHATS, ids=lambda value: str(value)[:40])
def test_bad_chat(shared_front, fields, param, says):
    body = fields if "messages" in fields or not fields else {"messages": [USER], **fields}
    error = error_of(shared_front.post(CHAT, **body), 400)
    if says is not None:
        assert error["param"] == param
        assert says in error["message"]


def test_variables_of_templates_may_be_nested(shared_front):
    assert shared_front.post(CHAT, messages=[USER], chat_template_kwargs={"x": nested(16)}).status_code == 200
    assert shared_front.post("/tokenize", messages=[USER], chat_template_kwargs={"x": nested(40)}).status_code == 400


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("value", ["%s", '[1, {"a": [%s]}]'])
def test_numbers_that_no_variable_of_a_template_can_be(shared_front, number, value):
    body = '{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"x": %s}}' % (value % number)
    answer = shared_front.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert error_of(answer, 400)["param"] == "chat_template_kwargs"


def test_a_name_that_holds_half_a_character(shared_front):
    for path, body in (
        (COMPLETIONS, b'{"prompt": "x", "\\ud800": 1}'),
        (CHAT, b'{"messages": [{"role": "user", "content": "x", "\\ud800": 1}]}'),
        ("/tokenize", b'{"prompt": "x", "\\ud800": 1}'),
    ):
        answer = shared_front.client.post(path, content=body, headers={"content-type": "application/json"})
        error = error_of(answer, 400)
        assert error["param"] == "\ud800"
        assert "unknown field" in error["message"]


def test_a_body_without_a_length_may_not_be_too_large(front_class):
    with contextlib.closing(front_class(ServerConfig(max_request_bytes=100))) as front:
        for content in (b"x" * 101, iter([b"x" * 60, b"x" * 60])):
            headers = {"content-type": "application/json"}
            assert error_of(front.client.post(COMPLETIONS, content=content, headers=headers), 413)["code"] == (
                "request_too_large"
            )


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"null"])
def test_a_body_that_is_no_json_object(shared_front, body):
    answer = shared_front.client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    error_of(answer, 400)


def test_json_numbers_that_are_none(shared_front):
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        body = b'{"prompt": "x", "temperature": %s}' % number.encode()
        answer = shared_front.client.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
        assert error_of(answer, 400)["param"] == "temperature"


def test_unknown_route_method_and_model(shared_front):
    assert "/v1/nothing" in error_of(shared_front.get("/v1/nothing"), 404)["message"]
    assert "GET" in error_of(shared_front.get(COMPLETIONS), 405)["message"]
    error = error_of(shared_front.get("/v1/models/org/other"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    error = error_of(shared_front.post(COMPLETIONS, prompt="x", model="other"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("form", "refused", "neutral"),
    [
        ({"prompt": "x"}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools": []}),
        ({"prompt": "x"}, {"documents": [{"text": "d"}]}, {"documents": []}),
        ({"prompt": "x"}, {"add_generation_prompt": False}, {"add_generation_prompt": True}),
        ({"prompt": "x"}, {"continue_final_message": True}, {"continue_final_message": False}),
        ({"prompt": "x"}, {"chat_template_kwargs": {"x": 1}}, {"chat_template_kwargs": {}}),
        ({"messages": [USER]}, {"add_special_tokens": True}, {"add_special_tokens": False}),
    ],
)
def test_what_is_tokenized_has_one_form(shared_front, form, refused, neutral):
    (name,) = refused
    assert error_of(shared_front.post("/tokenize", **form, **refused), 400)["param"] == name
    for fields in (neutral, {name: None}):
        assert shared_front.post("/tokenize", **form, **fields).status_code == 200


def test_hints_name_what_the_form_has(shared_front):
    error = error_of(shared_front.post("/v1/embeddings", input="x", guided_json={}), 400)
    assert "known: model" in error["message"]
    error = error_of(shared_front.post("/v1/responses", input="x", return_tokens_as_token_ids=True), 400)
    assert "known: model" in error["message"]
    error = error_of(shared_front.post("/v1/responses", input="x", guided_json={}), 400)
    assert "send structured_outputs={'json': ...}" in error["message"]


def test_tokenizer_errors(shared_front):
    assert error_of(shared_front.post("/tokenize"), 400)["param"] == "prompt"
    assert error_of(shared_front.post("/tokenize", prompt="x", messages=[USER]), 400)["param"] == "prompt"
    assert error_of(shared_front.post("/detokenize", tokens=[-1]), 400)["param"] == "tokens"
    error = error_of(shared_front.post("/detokenize", tokens=[1000]), 400)
    assert (error["param"], error["message"]) == ("tokens", "the vocabulary ends at 999")


FORMAT = {"response_format": {"type": "json_object"}}
TEXT_FORMAT = {"text": {"format": {"type": "json_object"}}}
REGEX = {"structured_outputs": {"regex": "a"}}
SENT_AS = [  # what the engine says of which field, and what it is called in the request
    (COMPLETIONS, FORMAT, "structured_outputs: 'not' is", "response_format"),
    (COMPLETIONS, REGEX, "structured_outputs: no", "structured_outputs"),
    (COMPLETIONS, {"logprobs": 30}, "logprobs=30: start it with a higher --max-logprobs", "logprobs"),
    (COMPLETIONS, {}, "prompt is empty", "prompt"),
    (CHAT, FORMAT, "structured_outputs: no", "response_format"),
    (CHAT, REGEX, "structured_outputs: no", "structured_outputs"),
    (CHAT, {"logprobs": True, "top_logprobs": 30}, "logprobs=30: see --max-logprobs", "top_logprobs"),
    (CHAT, {"max_tokens": 5}, "max_tokens=5: no", "max_tokens"),
    (CHAT, {"max_completion_tokens": 5}, "max_tokens=5: no", "max_completion_tokens"),
    (CHAT, {}, "template_kwargs must not", "chat_template_kwargs"),
    ("/tokenize", {}, "template_kwargs must not", "chat_template_kwargs"),
    ("/v1/responses", {}, "template_kwargs must not", "chat_template_kwargs"),
    ("/v1/responses/input_tokens", {}, "template_kwargs must not", "chat_template_kwargs"),
    ("/v1/responses", TEXT_FORMAT, "structured_outputs: no", "text.format"),
    ("/v1/responses", REGEX, "structured_outputs: no", "structured_outputs"),
    ("/v1/responses", {"max_output_tokens": 5}, "max_tokens=5: no", "max_output_tokens"),
    ("/v1/embeddings", {}, "prompt is empty", "input"),
    ("/v1/embeddings", {}, "inputs[0] is empty", "input"),
    ("/score", {"text_2": "x"}, "queries[0]: no", "text_1"),
    ("/score", {"text_2": ["x", ""]}, "prompt is empty", "text_2"),
    ("/score", {"documents": "x"}, "documents: no", "documents"),
    ("/rerank", {"documents": ["x"]}, "queries[0]: no", "query"),
    ("/rerank", {"documents": ["x" * 99]}, "prompt has 9 tokens", "documents"),
]
PROMPT_FIELDS = {"/v1/embeddings": "input", "/score": "text_1", "/rerank": "query", COMPLETIONS: "prompt"}


def blamed(front, path, fields, message):
    param = re.match(r"\w+", message)[0]
    text = f"blame {param} {message}"
    prompt = {"input": text} if "responses" in path else {"messages": [{"role": "user", "content": text}]}
    if path in PROMPT_FIELDS:
        prompt = {PROMPT_FIELDS[path]: text}
    return error_of(front.post(path, **prompt, **fields), 400), param


@pytest.mark.parametrize(("path", "fields", "message", "own"), SENT_AS)
def test_the_engines_errors_name_what_was_sent(shared_front, path, fields, message, own):
    error, param = blamed(shared_front, path, fields, message)
    assert (error["param"], error["message"]) == (own, message.replace(param, own, 1))


@pytest.mark.parametrize(("path", "own"), [(CHAT, "messages"), ("/tokenize", "messages"), ("/v1/responses", "input")])
def test_the_prompt_of_a_chat_is_called_so(shared_front, path, own):
    error, _ = blamed(shared_front, path, {}, "prompt has 9 tokens: shorten the prompt")
    assert (error["param"], error["message"]) == (own, "prompt has 9 tokens: shorten the prompt")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (3, 400, "invalid_request_error"), (5, 404, "invalid_request_error"), (6, 409, "invalid_request_error"),
        (8, 429, "rate_limit_error"), (13, 500, "server_error"), (14, 503, "server_error"),
        (4, 504, "server_error"), (2, 500, "server_error"), (77, 500, "server_error"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_refusals_have_their_status(shared_front, code, status, kind, stream):
    answer = shared_front.post(COMPLETIONS, prompt=f"fail {code}", stream=stream)
    error = error_of(answer, status)
    assert (error["type"], error["message"], error["param"]) == (kind, "as scripted", "prompt")
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_one_refused_prompt_refuses_all_and_ends_the_others(shared_front):
    error_of(shared_front.post(COMPLETIONS, prompt=["hang", "fail 8"]), 429)
    shared_front.wait(lambda: shared_front.engine.running == 0)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_an_error_in_the_midst_of_a_stream(shared_front, path):
    text = "fail 13 after 2"
    body = {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
    *events, last = shared_front.events(path, **body)
    assert last == {"error": {"message": "as scripted", "type": "server_error", "param": None, "code": "internal"}}
    assert all("error" not in event for event in events)


@pytest.mark.parametrize(("reason", "status"), [("ABORT", 503), ("DEADLINE", 504), ("ERROR", 500)])
def test_requests_the_server_ended(shared_front, reason, status):
    error_of(shared_front.post(COMPLETIONS, prompt=f"end {reason}"), status)


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{**USER, "content": "\ud800"}]},
        {"messages": [{**USER, "content": [{"type": "text", "text": "\ud800"}]}]},
        {"messages": [{**USER, "name": "\ud800"}]},
        {"tools": [{**FUNCTION, "function": {"name": "f", "parameters": {"\ud800": 1}}}]},
        {"documents": [{"text": "\ud800"}]},
        {"tool_choice": {"type": "function", "function": {"name": "\ud800"}}},
        {"chat_template_kwargs": {"a": "\ud800"}},
        {"reasoning_effort": "\ud800"},
    ],
)
def test_halves_of_characters(fields, shared_front):
    body = json.dumps({"messages": [USER], **fields})
    answer = shared_front.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert "surrogate" in error_of(answer, 400)["message"]
