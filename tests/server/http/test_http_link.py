"""The Session between front and engine: disconnects abort, breaks are told and mended, nothing hangs."""

import asyncio
import contextlib
import threading
import time

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.link import EngineLink, Stream

COMPLETIONS = "/v1/completions"


@pytest.fixture
def background():
    """Runs calls on threads; gives their results."""
    threads = []

    def run(function, *args, **kwargs):
        results = []
        thread = threading.Thread(target=lambda: results.append(function(*args, **kwargs)))
        thread.start()
        threads.append(thread)
        return results

    yield run
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_aborts_its_request(front, stream):
    body = {"prompt": ["slow", "hang"], "max_tokens": 100_000, "stream": stream}
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream("POST", front.url + COMPLETIONS, json=body, timeout=0.5) as answer,
    ):
        lines = answer.iter_lines()  # held, because an iterator that is dropped closes its connection
        assert next(lines).startswith("data: ")
        assert front.engine.running == 2
    front.wait(lambda: front.engine.running == 0)
    assert sorted(front.engine.aborted) == sorted(front.engine.requests)
    assert "jaxllm_http_client_disconnects_total 1.0" in front.get("/metrics").text
    assert front.app.state.link.running == 0
    assert front.post(COMPLETIONS, prompt="x", max_tokens=1).status_code == 200


def test_a_request_that_ended_is_not_aborted(front):
    front.post(COMPLETIONS, prompt=["x", "y"], max_tokens=3)
    front.events(COMPLETIONS, prompt="x", max_tokens=3)
    assert front.engine.aborted == []
    assert front.app.state.link.running == 0


def test_when_the_engine_goes_requests_fail_and_health_turns(front, background):
    whole = background(front.post, COMPLETIONS, prompt="hang")
    begun = background(httpx.post, front.url + COMPLETIONS, json={"prompt": "slow", "max_tokens": 9999, "stream": True})
    front.wait(lambda: front.engine.running == 2)
    time.sleep(0.1)
    front.call(front.stop_engine())
    front.wait(lambda: whole and begun)
    assert whole[0].status_code == 503
    assert whole[0].json()["error"]["code"] == "unavailable"
    *_, error, done, _ = begun[0].text.split("\n\n")
    assert '"code":"unavailable"' in error
    assert done == "data: [DONE]"

    before = time.monotonic()
    assert front.get("/health").status_code == 503
    assert front.post(COMPLETIONS, prompt="x").status_code == 503
    assert front.get("/v1/models").status_code == 503
    metrics = front.get("/metrics")
    assert (metrics.status_code, "jaxllm_http_engine_up 0.0" in metrics.text) == (200, True)
    assert time.monotonic() - before < 15

    front.call(front.start_engine(front.grpc_port))
    front.wait(lambda: front.get("/health").status_code == 200)
    assert front.post(COMPLETIONS, prompt="x", max_tokens=2).json()["choices"][0]["text"] == "Once upon"


def test_health_is_the_engines(front):
    front.engine.status = health_pb2.HealthCheckResponse.NOT_SERVING
    assert front.get("/health").status_code == 503
    front.engine.status = health_pb2.HealthCheckResponse.SERVING
    assert front.get("/health").status_code == 200


def test_health_does_not_wait_for_a_hanging_engine(front, monkeypatch):
    async def hang(request, context):
        await asyncio.sleep(60)

    monkeypatch.setattr(front.engine, "Check", hang)
    front.call(front.stop_engine())
    front.call(front.start_engine(front.grpc_port))
    front.wait(lambda: front.app.state.link.connected)
    before = time.monotonic()
    assert front.get("/health").status_code == 503
    assert time.monotonic() - before < 5


def test_a_silent_engine_is_given_up(front, monkeypatch):
    monkeypatch.setattr("jaxllm.server.http.link.SILENCE_SECONDS", 0.2)
    front.call(front.stop_engine())

    async def hang(request, context):
        await asyncio.sleep(60)

    front.call(front.start_engine(front.grpc_port))
    front.wait(lambda: front.get("/health").status_code == 200)
    # Checked where the calls are made: what hangs is the network, not the service.
    monkeypatch.setattr(front.app.state.link, "_health", HangingHealth())
    answer = front.post(COMPLETIONS, prompt="hang")
    assert answer.status_code == 503
    monkeypatch.undo()
    front.wait(lambda: front.get("/health").status_code == 200)


class HangingHealth:
    async def Check(self, request, timeout):  # noqa: N802
        await asyncio.sleep(timeout)
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata(), "Deadline Exceeded"
        )


async def test_submitting_without_an_engine_is_refused_at_once():
    link = EngineLink("127.0.0.1:9")
    with pytest.raises(ApiError) as refused:
        link.submit([pb.GenerateRequest(request_id="a", text="x")])
    assert refused.value.status == 503
    with pytest.raises(ApiError) as refused:
        await asyncio.wait_for(link.connect(), 10)
    assert refused.value.status == 503


def test_a_request_waits_for_a_session_that_is_being_opened(front, background):
    front.call(front.stop_engine())
    front.wait(lambda: not front.app.state.link.connected)
    answer = background(front.post, COMPLETIONS, prompt="x", max_tokens=2)
    time.sleep(0.1)
    front.call(front.start_engine(front.grpc_port))
    front.wait(lambda: answer)
    assert answer[0].status_code == 200


async def test_a_slow_reader_gets_fewer_and_longer_batches():
    """While readers are busy with a batch, what arrives joins the next one."""
    link = EngineLink("127.0.0.1:9")
    streams = [Stream(link, [pb.GenerateRequest(request_id=str(i))]) for i in range(4)]
    link._streams = {str(i): stream for i, stream in enumerate(streams)}
    batches = []

    async def read(stream):
        while not stream.done:
            batches.append(len(await stream.next()))
            begin = time.thread_time()
            while time.thread_time() - begin < 0.01:
                pass  # the work of writing

    readers = [asyncio.create_task(read(stream)) for stream in streams]
    await asyncio.sleep(0)
    steps = 50
    for step in range(steps):
        chunks = [pb.GenerateChunk(request_id=str(i), token_ids=[step]) for i in range(4)]
        if step == steps - 1:
            for chunk in chunks:
                chunk.finish.reason = pb.FINISH_REASON_LENGTH
        link._deliver(pb.SessionResponse(chunks=chunks))
        await asyncio.sleep(0.002)
    await asyncio.wait_for(asyncio.gather(*readers), 20)
    assert sum(batches) == 4 * steps
    assert len(batches) < 2 * steps
    assert link.running == 0
