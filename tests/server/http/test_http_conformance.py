"""Every kind of answer and event against the schemas of OpenAI's own API description."""

import jsonschema
import pytest

from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.requests import CompletionRequest, StreamOptions

MESSAGES = [{"role": "user", "content": "slow talk"}]
ASKED = [
    {},
    {"max_tokens": 1},
    {"logprobs": 3},
    {"prompt_logprobs": 1, "return_token_ids": True},
    {"stop": "was"},
]


@pytest.mark.parametrize("fields", ASKED, ids=str)
def test_completions(shared_front, openapi, fields):
    for prompt in ("slow x", "stop x", ["x", "y"], [1, 2]):
        answer = shared_front.post("/v1/completions", prompt=prompt, **fields)
        assert answer.status_code == 200
        openapi.check("CreateCompletionResponse", answer.json())
        if "prompt_logprobs" not in fields:
            options = {"include_usage": True}
            for event in shared_front.events("/v1/completions", prompt=prompt, stream_options=options, **fields):
                openapi.check("CompletionEvent", event)


@pytest.mark.parametrize("fields", ASKED, ids=str)
def test_chats(shared_front, openapi, fields):
    if "logprobs" in fields:
        fields = {"logprobs": True, "top_logprobs": 3}
    answer = shared_front.post("/v1/chat/completions", messages=MESSAGES, **fields)
    assert answer.status_code == 200
    openapi.check("CreateChatCompletionResponse", answer.json())
    if "prompt_logprobs" not in fields:
        for options in ({"include_usage": True}, None):
            body = {"messages": MESSAGES, "stream_options": options, **fields}
            for event in shared_front.events("/v1/chat/completions", **body):
                openapi.check("CreateChatCompletionStreamResponse", event)


def test_calls_and_reasoning(shared_front, openapi):
    messages = [{"role": "user", "content": "call"}]
    for fields in ({}, {"max_tokens": 5}, {"return_token_ids": True}):
        answer = shared_front.post("/v1/chat/completions", messages=messages, **fields)
        openapi.check("CreateChatCompletionResponse", answer.json())
        for event in shared_front.events("/v1/chat/completions", messages=messages, **fields):
            openapi.check("CreateChatCompletionStreamResponse", event)


def test_models_and_errors(shared_front, openapi):
    openapi.check("ListModelsResponse", shared_front.get("/v1/models").json())
    openapi.check("Model", shared_front.get("/v1/models/scripted").json())
    for answer in (
        shared_front.get("/v1/nothing"),
        shared_front.post("/v1/completions", prompt="fail 8"),
        shared_front.post("/v1/completions", prompt="x", max_tokens=-1),
    ):
        assert answer.status_code >= 400
        openapi.check("ErrorResponse", answer.json())
    openapi.check("ErrorResponse", shared_front.events("/v1/completions", prompt="fail 13 after 1")[-1])


def test_every_request_field_of_the_description_is_known(openapi):
    assert openapi.properties("CreateCompletionRequest") <= CompletionRequest.model_fields.keys()
    assert openapi.properties("CreateChatCompletionRequest") <= ChatRequest.model_fields.keys()
    options = openapi.schemas["ChatCompletionStreamOptions"]["anyOf"][0]["properties"]
    assert options.keys() <= StreamOptions.model_fields.keys()


def test_the_check_itself_can_fail(shared_front, openapi):
    answer = shared_front.post("/v1/completions", prompt="x").json()
    for broken in (
        {key: value for key, value in answer.items() if key != "id"},
        answer | {"created": "now"},
        answer | {"choices": [answer["choices"][0] | {"finish_reason": "abort"}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            openapi.check("CreateCompletionResponse", broken)
