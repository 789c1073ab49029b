"""Responses that are kept: in the background, followed, cancelled, deleted and forgotten."""

import contextlib
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from jaxllm.config import ServerConfig
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.responses.events import ResponseAnswer
from jaxllm.server.http.responses.reading import ResponsesRequest
from jaxllm.server.http.responses.store import Store

RESPONSES = "/v1/responses"


@pytest.fixture(scope="module")
def client(shared_front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared_front.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def ended(client: openai.OpenAI, response_id: str) -> Any:
    end = time.monotonic() + 10
    while (response := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return response


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_in_the_background(client, openapi):
    words = random.randint(3, 12)
    queued = client.responses.create(model="scripted", input="slow", background=True, max_output_tokens=words)
    assert (queued.status, queued.output, queued.background, queued.usage) == ("queued", [], True, None)
    openapi.check("Response", queued.model_dump(mode="json", exclude_unset=True))
    response = ended(client, queued.id)
    openapi.check("Response", response.model_dump(mode="json", exclude_unset=True))
    assert (response.status, response.usage.output_tokens) == ("incomplete", words)
    assert response.output_text == client.responses.create(
        model="scripted", input="slow", max_output_tokens=words
    ).output_text  # fmt: skip


def test_what_has_come_so_far(client, shared_front, openapi):
    queued = client.responses.create(model="scripted", input="slow", background=True, max_output_tokens=100)
    shared_front.wait(lambda: client.responses.retrieve(queued.id).output != [])
    response = client.responses.retrieve(queued.id)
    openapi.check("Response", response.model_dump(mode="json", exclude_unset=True))
    assert (response.status, response.output[0].status) == ("in_progress", "in_progress")
    assert response.output_text.startswith("Once")
    error = error_of(shared_front.post(RESPONSES, input="x", previous_response_id=queued.id), 400)
    assert "is in_progress" in error["message"]
    client.responses.cancel(queued.id)


def test_cancelling_ends_the_engines_work(client, front):
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        for stream in (False, True):
            count = len(front.engine.aborted)
            made = client.responses.create(model="scripted", input="hang", background=True, stream=stream)
            response_id = next(iter(made)).response.id if stream else made.id
            front.wait(lambda: front.engine.running == 1)
            cancelled = client.responses.cancel(response_id)
            assert (cancelled.id, cancelled.status) == (response_id, "cancelled")
            front.wait(lambda: front.engine.running == 0)
            assert front.engine.aborted[count:] == [f"{response_id}-0"]
            assert client.responses.cancel(response_id) == client.responses.retrieve(response_id) == cancelled
        done = client.responses.create(model="scripted", input="x", background=True)
        whole = ended(client, done.id)
        assert client.responses.cancel(done.id) == whole, "what has ended stays as it is"


def test_only_what_runs_in_the_background_can_be_cancelled(client):
    response = client.responses.create(model="scripted", input="x")
    with pytest.raises(openai.BadRequestError, match="background=true"):
        client.responses.cancel(response.id)


def test_a_background_response_survives_its_client_and_can_be_followed(front, openapi):
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        stream = client.responses.create(
            model="scripted", input="slow", background=True, stream=True, max_output_tokens=12
        )  # fmt: skip
        seen = []
        for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
        stream.close()
        response_id = seen[0].response.id
        last = seen[-1].sequence_number
        rest = list(client.responses.retrieve(response_id, stream=True, starting_after=last))
        assert rest[0].sequence_number == last + 1
        assert rest[-1].type == "response.incomplete"
        events = [event.model_dump(mode="json", exclude_unset=True) for event in [*seen, *rest]]
        for event in events:
            openapi.check("ResponseStreamEvent", event)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events[:3]] == [
            "response.created", "response.queued", "response.in_progress",
        ]  # fmt: skip
        assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
        again = [event.model_dump(mode="json", exclude_unset=True) for event in client.responses.retrieve(
            response_id, stream=True)]  # fmt: skip
        assert again == events
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        assert text == client.responses.retrieve(response_id).output_text
        assert front.engine.aborted == []
        not_streamed = client.responses.create(model="scripted", input="x", background=True)
        with pytest.raises(openai.BadRequestError, match="create it with background=true and stream=true"):
            list(client.responses.retrieve(not_streamed.id, stream=True))


def test_followers_see_the_end_of_what_is_cancelled(front):
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        stream = client.responses.create(model="scripted", input="hang", background=True, stream=True)
        first = next(stream)
        client.responses.cancel(first.response.id)
        assert [event.type for event in stream] == ["response.queued"]


def test_a_background_response_that_fails(client, openapi):
    for text, code in (
        ("fail 13 after 2", "server_error"),
        ("fail 3", "invalid_prompt"),
        ("fail 8", "rate_limit_exceeded"),
    ):
        stream = list(client.responses.create(model="scripted", input=text, background=True, stream=True))
        for event in stream:
            openapi.check("ResponseStreamEvent", event.model_dump(mode="json", exclude_unset=True))
        assert stream[-1].type == "response.failed"
        response = client.responses.retrieve(stream[0].response.id)
        assert (response.status, response.error.code, response.error.message) == ("failed", code, "as scripted")


def test_a_client_that_leaves_a_stream_ends_it(front):
    with front.client.stream(
        "POST", RESPONSES, json={"input": "slow", "stream": True, "max_output_tokens": 500}
    ) as answer:
        lines = answer.iter_lines()  # held: one that is dropped closes its connection
        assert next(lines) == "event: response.created"
        response_id = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        assert front.get(f"{RESPONSES}/{response_id}").json()["status"] == "in_progress"
    front.wait(lambda: front.engine.running == 0)
    assert front.engine.aborted == [f"{response_id}-0"]
    front.wait(lambda: front.get(f"{RESPONSES}/{response_id}").json()["status"] == "cancelled")


def test_deleting(client, front):
    response = client.responses.create(model="scripted", input="x")
    client.responses.delete(response.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match="it was deleted"):
            call(response.id)
    running = front.post(RESPONSES, input="hang", background=True).json()["id"]
    front.wait(lambda: front.engine.running == 1)
    answer = front.client.delete(f"{RESPONSES}/{running}")
    assert answer.json() == {"id": running, "object": "response", "deleted": True}
    front.wait(lambda: front.engine.running == 0)


def test_items_that_are_referred_to(client, shared_front):
    first = client.responses.create(model="scripted", input="call")
    references: list[Any] = [{"type": "item_reference", "id": item.id} for item in first.output]
    results: list[Any] = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "42"}
        for item in first.output
        if item.type == "function_call"
    ]
    user: Any = {"role": "user", "content": "call"}
    second = client.responses.create(model="scripted", input=[user, *references, *results], max_output_tokens=1)
    turn = shared_front.last_request.chat.messages[1]
    assert (turn.reasoning, turn.parts[0].text) == ("They want the weather.", "I look.")
    assert [call.id for call in turn.tool_calls] == ["call_1", "call_2"]
    listed = client.responses.input_items.list(second.id, order="asc").data
    assert [item.id for item in listed[1:5]] == [item.id for item in first.output]
    counted = client.responses.input_tokens.count(model="scripted", input=[user, references[1]])
    assert counted.input_tokens == 1  # the scripted engine counts plain contents alone
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match="send the item itself"):
        client.responses.create(model="scripted", input=[user, *references])


def test_what_is_not_kept(client):
    response = client.responses.create(model="scripted", input="x", store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError, match=r"it was never kept \(store=false\)") as refused:
        client.responses.retrieve(response.id)
    assert (refused.value.code, refused.value.param) == ("response_not_found", "response_id")
    with pytest.raises(openai.BadRequestError, match="it was never kept") as refused:
        client.responses.create(model="scripted", input="x", previous_response_id=response.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_refused_request_leaves_nothing(front_class, monkeypatch):
    kept = []
    monkeypatch.setattr(Store, "put", lambda store, answer, caller, run=None: kept.append(answer))
    with contextlib.closing(front_class()) as front:
        for stream in (False, True):
            assert front.post(RESPONSES, input="fail 3", stream=stream).status_code == 400
            assert front.post(RESPONSES, input="x", n=2, stream=stream).status_code == 400
        assert kept == []
        assert front.post(RESPONSES, input="x").status_code == 200
        assert len(kept) == 1


def test_the_oldest_are_forgotten(front_class):
    with contextlib.closing(front_class(ServerConfig(max_stored_responses=3))) as front:
        made = [front.post(RESPONSES, input=f"x {i}", max_output_tokens=1).json() for i in range(5)]
        for response in made[2:]:
            assert front.get(f"{RESPONSES}/{response['id']}").json() == response
        for response in made[:2]:
            message = error_of(front.get(f"{RESPONSES}/{response['id']}"), 404)["message"]
            assert "it was forgotten, because this server keeps no more than 3 responses" in message
        message = error_of(front.post(RESPONSES, input="x", previous_response_id=made[0]["id"]), 400)["message"]
        assert "it was forgotten" in message
        follow = front.post(RESPONSES, input="x", previous_response_id=made[4]["id"], max_output_tokens=1).json()
        front.client.delete(f"{RESPONSES}/{made[4]['id']}")
        later = front.post(RESPONSES, input="x", previous_response_id=follow["id"], max_output_tokens=1)
        assert later.status_code == 200, "it has what came before, whether or not that is kept"
        assert len(front.last_request.chat.messages) == 5


def test_what_runs_in_the_background_is_not_forgotten(front_class):
    with contextlib.closing(front_class(ServerConfig(max_stored_responses=2))) as front:
        running = [front.post(RESPONSES, input="hang", background=True).json()["id"] for _ in range(2)]
        error = error_of(front.post(RESPONSES, input="hang", background=True), 429)
        assert error["code"] == "store_full"
        assert "2 responses are being made in the background" in error["message"]
        other = front.post(RESPONSES, input="x", max_output_tokens=1).json()
        assert error_of(front.get(f"{RESPONSES}/{other['id']}"), 404)["code"] == "response_not_found"
        for response_id in running:
            assert front.get(f"{RESPONSES}/{response_id}").json()["status"] in ("queued", "in_progress")
        front.client.delete(f"{RESPONSES}/{running[0]}")
        assert front.post(RESPONSES, input="x", background=True).status_code == 200


def test_a_server_that_keeps_none(front_class):
    with contextlib.closing(front_class(ServerConfig(max_stored_responses=0))) as front:
        response = front.post(RESPONSES, input="x").json()
        assert "forgotten" in error_of(front.get(f"{RESPONSES}/{response['id']}"), 404)["message"]
        assert error_of(front.post(RESPONSES, input="x", background=True), 429)["code"] == "store_full"


def answer_of(size: int) -> ResponseAnswer:
    """One that has ended, whose input has so many characters."""
    answer = ResponseAnswer(ResponsesRequest(input="x" * size), "m", [])
    answer.cancel()
    return answer


def test_the_store_keeps_to_its_bytes():
    bound = 20_000
    store = Store(1000, bound)
    kept: list[ResponseAnswer] = []
    for _ in range(200):
        answer = answer_of(random.randint(0, 3_000))
        store.put(answer, b"")
        kept.append(answer)
        while sum(each.size for each in kept) > bound:
            with pytest.raises(ApiError, match="it was forgotten"):
                store.get(kept.pop(0).id, b"")
        assert [store.get(each.id, b"").answer for each in kept] == kept
        if random.random() < 0.2:
            store.delete(kept.pop(random.randrange(len(kept))).id, b"")
    assert len(store) == len(kept)
    big = answer_of(bound)
    store.put(big, b"")
    with pytest.raises(ApiError, match="it was forgotten"):
        store.get(big.id, b"")
    assert len(store) == 0


def test_events_of_the_background_count(front_class):
    with contextlib.closing(front_class(ServerConfig(max_stored_response_bytes=30_000))) as front:
        first = front.post(RESPONSES, input="x", max_output_tokens=1).json()["id"]
        response = front.post(RESPONSES, input="x", background=True, stream=True, max_output_tokens=200)
        assert len(response.content) > 30_000
        assert "forgotten" in error_of(front.get(f"{RESPONSES}/{first}"), 404)["message"]
