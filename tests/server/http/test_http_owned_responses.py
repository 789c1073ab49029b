"""Kept responses belong to the key that had them made: for other keys there are none."""

import contextlib
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from jaxllm.config import ServerConfig
from jaxllm.server.access import Keys
from jaxllm.server.http.responses.store import Store

KEYS = tuple(secrets.token_urlsafe() for _ in range(2))


@dataclass
class Callers:
    """Two clients, each with a key of its own, and the front that both call."""

    front: Any
    one: openai.OpenAI
    other: openai.OpenAI

    def create(self, **fields: Any) -> Any:
        return self.one.responses.create(model="scripted", **fields)


@pytest.fixture(scope="module")
def callers(front_class) -> Iterator[Callers]:
    with contextlib.closing(front_class(ServerConfig(api_key=KEYS))) as front, contextlib.ExitStack() as clients:
        yield Callers(front, *(
            clients.enter_context(openai.OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0, timeout=20))
            for key in KEYS
        ))  # fmt: skip


def refusal(call: Callable[[str], Any], response_id: str) -> Any:
    """The 404's body, without the id that was asked for."""
    with pytest.raises(openai.NotFoundError) as refused:
        call(response_id)
    return str(refused.value.body).replace(response_id, "ID")


def calls(client: openai.OpenAI) -> list[Callable[[str], Any]]:
    """Everything that takes a response's id and tells of it."""
    responses = client.responses
    return [
        responses.retrieve,
        lambda response_id: list(responses.retrieve(response_id, stream=True)),
        lambda response_id: responses.retrieve(response_id, extra_query={"stream": "true", "starting_after": 1}),
        lambda response_id: list(responses.input_items.list(response_id)),
        responses.cancel,
        responses.delete,
    ]


def assert_hidden(callers: Callers, response_id: str) -> None:
    unknown = f"resp_{secrets.token_hex(16)}"
    for call in calls(callers.other):
        assert refusal(call, response_id) == refusal(call, unknown)
    for create in (callers.other.responses.create, callers.other.responses.input_tokens.count):
        told = []
        for previous in (response_id, unknown):
            with pytest.raises(openai.BadRequestError) as refused:
                create(model="scripted", input="x", previous_response_id=previous)
            told.append(str(refused.value.body).replace(previous, "ID"))
        assert told[0] == told[1]
        assert "previous_response_not_found" in told[0]


def test_one_that_has_ended(callers):
    secret = secrets.token_hex(8)
    for stream in (False, True):
        made = callers.create(input=secret, max_output_tokens=random.randint(1, 5), stream=stream)
        response = list(made)[-1].response if stream else made
        assert_hidden(callers, response.id)
        assert callers.one.responses.retrieve(response.id) == response
        callers.create(input="x", previous_response_id=response.id, max_output_tokens=1)
        assert callers.front.last_request.chat.messages[0].content == secret


def test_one_in_the_background(callers):
    for stream in (False, True):
        made = callers.create(input="hang", background=True, stream=stream)
        response_id = next(iter(made)).response.id if stream else made.id
        callers.front.wait(lambda: callers.front.engine.running == 1)
        assert_hidden(callers, response_id)
        assert callers.front.engine.running == 1, "another's cancel and delete ended nothing"
        assert callers.one.responses.cancel(response_id).status == "cancelled"
        callers.front.wait(lambda: callers.front.engine.running == 0)
        assert_hidden(callers, response_id)


def test_one_that_is_still_streamed(callers):
    with callers.create(input="slow", stream=True, max_output_tokens=500) as stream:
        response_id = next(stream).response.id
        assert_hidden(callers, response_id)
        assert callers.one.responses.retrieve(response_id).status == "in_progress"


def test_nothing_tells_that_there_was_one(callers):
    response = callers.create(input="x", max_output_tokens=1)
    callers.one.responses.delete(response.id)
    assert_hidden(callers, response.id)
    with pytest.raises(openai.NotFoundError, match="it was deleted"):
        callers.one.responses.retrieve(response.id)


def test_items_of_anothers_answers(callers):
    (item,) = callers.create(input="x", max_output_tokens=1).output
    reference: Any = {"type": "item_reference", "id": item.id}
    user: Any = {"role": "user", "content": "x"}
    callers.create(input=[user, reference], max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="there is no item"):
        callers.other.responses.create(model="scripted", input=[user, reference])


def test_either_header_shows_the_same_key(callers):
    response = callers.create(input="x", max_output_tokens=1)
    path = f"/v1/responses/{response.id}"
    statuses = [callers.front.client.get(path, headers={"x-api-key": key}).status_code for key in KEYS]
    assert statuses == [200, 404]


def test_without_keys_everyone_is_one(shared_front):
    response = shared_front.post("/v1/responses", input="x", max_output_tokens=1).json()
    for headers in ({}, *({"x-api-key": key} for key in KEYS)):
        assert shared_front.client.get(f"/v1/responses/{response['id']}", headers=headers).json() == response


def test_the_store_holds_no_key(callers, monkeypatch):
    kept = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda store, *arguments: (kept.append(arguments[1]), put(store, *arguments)))
    callers.create(input="x", max_output_tokens=1)
    callers.other.responses.create(model="scripted", input="x", max_output_tokens=1, background=True)
    keys = Keys(KEYS)
    assert kept == [keys.identify(f"Bearer {key}", None) for key in KEYS]
    assert len(set(kept)) == 2
    assert not any(key.encode() in caller for key in KEYS for caller in kept)
