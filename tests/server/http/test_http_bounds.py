"""What one legal request may cost, and answers that do not depend on how their chunks come together."""

import contextlib
import difflib
import gc
import itertools
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from jaxllm.errors import RequestError
from jaxllm.server.grpc.labels import metadata_of
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http import requests
from jaxllm.server.http.chats import MAX_VARIABLE_VALUES, ChatRequest
from jaxllm.server.http.forms import Strict
from jaxllm.server.http.requests import CompletionRequest
from jaxllm.server.http.responses.background import BackgroundRun
from jaxllm.server.http.responses.store import Store
from jaxllm.server.http.sections import SectionedAnswer

MESSAGES = [{"role": "user", "content": "hi"}]


def test_parameters_that_many_prompts_would_copy() -> None:
    allowed = list(range(100_000))
    one = CompletionRequest(prompt=["a"], allowed_token_ids=allowed)
    size = one.sampling().ByteSize()
    (request,) = one.generate_requests("one")
    assert request.sampling.ByteSize() == size
    most = requests.MAX_COPIED_BYTES // size
    assert len(CompletionRequest(prompt=["a"] * most, allowed_token_ids=allowed).generate_requests("few")) == most
    with pytest.raises(RequestError, match=f"prompt has {most + 1} entries, each of which takes a copy") as raised:
        CompletionRequest(prompt=["a"] * (most + 1), allowed_token_ids=allowed).generate_requests("many")
    assert raised.value.param == "prompt"


def test_variables_of_a_template_are_counted() -> None:
    few: dict[str, Any] = {"deep": [[1] * 99] * 99}  # 1 + 99 * 100
    assert ChatRequest(messages=MESSAGES, chat_template_kwargs=few).chat().template_kwargs
    with pytest.raises(ValueError, match=f"more than {MAX_VARIABLE_VALUES} values"):
        ChatRequest(messages=MESSAGES, chat_template_kwargs=few | {"more": [1] * 99})


def test_nothing_near_is_looked_for_where_an_unknown_field_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, *_: compared.append(name) or [])
    for name in ("x" * 101, "x" * 4_000_000, "promt"):
        with pytest.raises(ValueError, match="unknown field"):
            Strict.model_validate({name: 1})
    assert compared == ["promt"]


async def test_what_a_background_response_was_asked_goes_with_its_end() -> None:
    class Requests(list[pb.GenerateRequest]):
        """Which can be watched."""

    @contextlib.asynccontextmanager
    async def submit(requests: list[pb.GenerateRequest]) -> AsyncIterator[Any]:
        yield SimpleNamespace(done=True)

    answer = SimpleNamespace(id="a", take_events=list, ended=True, output=[], fail=None, cancel=lambda: None)
    for cancelled in (False, True):
        requests = Requests([pb.GenerateRequest()])
        held = weakref.ref(requests)
        run = BackgroundRun(SimpleNamespace(submit=submit), Store(1, 1), answer, requests)  # type: ignore[arg-type]
        task = run.start()
        del requests
        await (run.cancel() if cancelled else task)
        gc.collect()
        assert held() is None
        assert run is not None


def test_metadata_that_grpc_would_not_carry_is_left_out() -> None:
    names = {"x-request-id": "a" * 256, "traceparent": "b" * 512, "tracestate": "c" * 512}
    assert dict(metadata_of(names)) == names
    assert metadata_of({name: value * 2 for name, value in names.items()}) == ()
    assert metadata_of({"x-request-id": "é", "traceparent": "a\n"}) == ()


class Told(SectionedAnswer):
    """Keeps the tokens whose log probabilities are told of with each piece of text."""

    def __init__(self) -> None:
        super().__init__(ChatRequest(messages=MESSAGES))
        self.tokens: list[str] = []

    def extended(self, section: Any, piece: str, logprobs: list[pb.TokenLogprob]) -> None:
        assert section.kind == "text" or not logprobs
        self.tokens += [entry.token for entry in logprobs]


PIECES = (("Hm", "reasoning"), (" so", "reasoning"), ("</think>", ""), ("Yes", "text"), (" sir", "text"), ("!", "text"))


@pytest.mark.parametrize("cuts", [*itertools.product((False, True), repeat=len(PIECES) - 1)])
def test_log_probabilities_of_text_that_comes_with_reasoning(cuts: tuple[bool, ...]) -> None:
    chunks = [pb.GenerateChunk()]
    for place, (piece, kind) in enumerate(PIECES):
        chunk = chunks[-1]
        chunk.logprobs.add(token=piece)
        chunk.reasoning += piece if kind == "reasoning" else ""
        chunk.text += piece if kind == "text" else ""
        chunk.counts.completion, chunk.counts.reasoning = place + 1, min(3, place + 1)
        if place < len(cuts) and cuts[place]:
            chunks.append(pb.GenerateChunk())
    chunks[-1].finish.reason = pb.FINISH_REASON_STOP
    answer = Told()
    answer.add(chunks)
    assert answer.tokens == ["Yes", " sir", "!"]
    assert [section.text for section in answer.sections] == ["Hm so", "Yes sir!"]
