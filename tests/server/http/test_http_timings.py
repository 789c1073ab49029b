"""Timings on demand: the same at every endpoint, whole and streamed, for the protocols' own clients."""

from typing import Any

import anthropic
import openai
import pytest

COMPLETIONS, CHATS, RESPONSES, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
SCRIPTED = {
    "queue_seconds": 0.25, "prefill_seconds": 0, "decode_seconds": 0.5, "first_token_seconds": 0, "total_seconds": 0
}  # fmt: skip
TIMED = {"return_timings": True}
USER: Any = {"role": "user", "content": "x"}
TEXTS = ["one", "two words"]
POOLING: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": TEXTS},
    "/v1/score": {"text_1": "q", "text_2": TEXTS},
    "/score": {"queries": "q", "documents": TEXTS},
    "/v1/rerank": {"query": "q", "documents": TEXTS},
    "/v2/rerank": {"query": "q", "documents": TEXTS},
    "/rerank": {"query": "q", "documents": TEXTS},
    "/v1/classify": {"input": TEXTS},
    "/classify": {"input": TEXTS},
    "/pooling": {"input": TEXTS},
}


STRICT: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 20, "_strict_response_validation": True}
"""For clients that refuse what their models do not allow."""


@pytest.fixture
def client(shared_front):
    with openai.OpenAI(base_url=f"{shared_front.url}/v1", **STRICT) as client:
        yield client


@pytest.fixture
def claude(shared_front):
    with anthropic.Anthropic(base_url=shared_front.url, **STRICT) as client:
        yield client


def timings_of(model: Any) -> Any:
    """What the client's model has of them beside its own fields."""
    return (model.model_extra or {}).get("timings")


def test_completions(shared_front):
    body = {"prompt": ["x", "y"], "max_tokens": 2}
    choices = shared_front.post(COMPLETIONS, **body, **TIMED).json()["choices"]
    assert [choice["timings"] for choice in choices] == [SCRIPTED, SCRIPTED]
    assert "timings" not in shared_front.post(COMPLETIONS, **body).json()["choices"][0]
    choices = [event["choices"][0] for event in shared_front.events(COMPLETIONS, **body, **TIMED)]
    assert [choice["timings"] for choice in choices if choice["finish_reason"]] == [SCRIPTED, SCRIPTED]
    assert not any("timings" in choice for choice in choices if not choice["finish_reason"])


@pytest.mark.parametrize("content", ["x", "call"])
def test_chats(shared_front, content):
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3}
    assert shared_front.post(CHATS, **body, **TIMED).json()["choices"][0]["timings"] == SCRIPTED
    told = [event["choices"][0].get("timings") for event in shared_front.events(CHATS, **body, **TIMED)]
    assert told[-1] == SCRIPTED
    assert told[:-1] == [None] * (len(told) - 1)


@pytest.mark.parametrize("content", ["stop x", "call"])
def test_responses(client, openapi, content):
    asked: dict[str, Any] = {"model": "scripted", "input": content}
    response = client.responses.create(**asked, extra_body=TIMED)
    assert timings_of(response) == SCRIPTED
    openapi.check("Response", response.model_dump(mode="json", exclude_unset=True))
    assert timings_of(client.responses.retrieve(response.id)) == SCRIPTED
    assert timings_of(client.responses.create(**asked)) is None

    *events, last = client.responses.create(**asked, stream=True, extra_body=TIMED)
    assert timings_of(last.response) == SCRIPTED
    assert not any(timings_of(event.response) for event in events if hasattr(event, "response"))
    for event in (*events, last):
        openapi.check("ResponseStreamEvent", event.model_dump(mode="json", exclude_unset=True))
    with client.responses.stream(**asked, extra_body=TIMED) as stream:
        assert timings_of(stream.get_final_response()) == SCRIPTED
    *_, last = client.responses.create(**asked, stream=True)
    assert timings_of(last.response) is None


def test_responses_in_the_background(client, shared_front):
    """While they are made there are none."""
    queued = client.responses.create(
        model="scripted", input="slow", max_output_tokens=5, background=True, extra_body=TIMED
    )
    assert timings_of(queued) is None
    shared_front.wait(lambda: client.responses.retrieve(queued.id).status == "incomplete")
    assert timings_of(client.responses.retrieve(queued.id)) == SCRIPTED
    hanging = client.responses.create(model="scripted", input="hang", background=True, extra_body=TIMED)
    assert timings_of(client.responses.cancel(hanging.id)) is None


@pytest.mark.parametrize("content", ["x", "call"])
def test_messages(claude, content):
    asked: dict[str, Any] = {
        "model": "scripted", "max_tokens": 3, "messages": [{"role": "user", "content": content}]
    }  # fmt: skip
    whole = claude.messages.create(**asked, extra_body=TIMED)
    assert timings_of(whole) == SCRIPTED
    assert timings_of(claude.messages.create(**asked)) is None

    *events, last = claude.messages.create(**asked, stream=True, extra_body=TIMED)
    assert (last.type, timings_of(last)) == ("message_stop", SCRIPTED)
    assert not any(timings_of(event) for event in events)
    with claude.messages.stream(**asked, extra_body=TIMED) as stream:
        assert [block.type for block in stream.get_final_message().content] == [block.type for block in whole.content]
    *_, last = claude.messages.create(**asked, stream=True)
    assert timings_of(last) is None


@pytest.mark.parametrize("path", POOLING)
def test_what_pools(shared_front, path):
    """Once for all inputs: they are one request, whose inputs share steps."""
    answer = shared_front.post(path, **POOLING[path], **TIMED).json()
    untimed = shared_front.post(path, **POOLING[path], return_timings=False).json()
    assert answer.pop("timings") == SCRIPTED
    assert answer.keys() == untimed.keys()
    assert "timings" not in str(untimed)
    assert answer["usage"] == untimed["usage"]


def test_embeddings_for_openais_client(client):
    answer = client.embeddings.create(model="scripted", input=TEXTS, encoding_format="float", extra_body=TIMED)
    assert timings_of(answer) == SCRIPTED
    assert [item.embedding for item in answer.data] == [[1.0], [2.0]]


@pytest.mark.parametrize(("path", "body"), [
    (COMPLETIONS, {"prompt": "x"}), (CHATS, {"messages": [USER]}), (RESPONSES, {"input": "x"}),
    (MESSAGES, {"messages": [USER], "max_tokens": 1}), *POOLING.items(),
])  # fmt: skip
def test_it_is_a_truth(shared_front, path, body):
    answer = shared_front.post(path, **body, return_timings="yes")
    assert answer.status_code == 400
    assert "return_timings" in answer.json()["error"]["message"]
