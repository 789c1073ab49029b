"""Calls that pool, over a scripted engine: what becomes of them when it is full, fails or dies."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest

from jaxllm.config import ServerConfig
from jaxllm.core import Delta, FinishReason, Load, ModelInfo, Pooling, PoolingParams, PoolingRequest
from jaxllm.errors import QueueFullError
from jaxllm.server.grpc import pooling, service
from jaxllm.server.grpc.session import Requests
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

MAX_PROMPTS = 20
LIMITS = ServerConfig(max_prompts=MAX_PROMPTS)


class ScriptedPooler:
    """Stands in for EngineClient: an embedding is the prompt's tokens. It has room for so many at once, and answers
    when it is told to, on a thread of its own."""

    def __init__(self) -> None:
        self.info = ModelInfo(
            name="pooler", architecture="Pooler", dtype="float32", num_parameters=1, vocab_size=100, max_model_len=64,
            eos_token_ids=(), max_logprobs=0, path="/nowhere", generation_defaults={},
            pooling=Pooling(task="embed", size=3, sequence="mean", per_token=True, activation="none"),
        )  # fmt: skip
        self.alive = True
        self.max_queued = 90
        self.capacity = 100
        self.room = 100
        self.per_token = False
        self.waiting: dict[str, tuple[PoolingRequest, Callable[[Delta], None]]] = {}
        self.most = 0
        self.aborted: list[str] = []
        self._count = 0

    def make_pooling_request(self, ids: list[int], params: PoolingParams, **options: object) -> PoolingRequest:
        self._count += 1
        options.pop("token_types")
        return PoolingRequest(str(self._count), list(ids), params, self.per_token, **options)  # type: ignore[arg-type]

    def submit(self, request: PoolingRequest, on_delta: Callable[[Delta], None]) -> None:
        if len(self.waiting) >= self.room:
            raise QueueFullError("the queue is full")
        self.waiting[request.request_id] = request, on_delta
        self.most = max(self.most, len(self.waiting))

    def abort(self, request_id: str) -> bool:
        self.aborted.append(request_id)
        return self.waiting.pop(request_id, None) is not None

    def load(self) -> Load:
        return Load(waiting=len(self.waiting))

    def answer(self, count: int, finish: FinishReason = FinishReason.STOP, error: str | None = None) -> None:
        def deliver() -> None:
            for request_id in list(self.waiting)[:count]:
                request, on_delta = self.waiting.pop(request_id)
                request.pooled = np.array(request.prompt, np.float32) if finish is FinishReason.STOP else None
                on_delta(Delta(request_id, [], finish=finish, error=error))

        thread = threading.Thread(target=deliver)
        thread.start()
        thread.join()

    async def submitted(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.waiting) < count:
                await asyncio.sleep(0.002)


@pytest.fixture
def engine() -> ScriptedPooler:
    return ScriptedPooler()


@pytest.fixture
async def stub(engine: ScriptedPooler) -> "AsyncIterator[pb_grpc.InferenceAsyncStub]":
    backend = service.Backend({})
    server = service.make_server(backend, service.Health())
    port = service.listen(server, "127.0.0.1", 0)
    await server.start()
    backend.engine = service.Engine(Requests(engine, None, config=LIMITS), "cpu", metrics=lambda: "")  # type: ignore[arg-type]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.InferenceStub(channel)
    assert backend.engine.running == 0
    await server.stop(None)


def request(*prompts: list[int], **fields: object) -> pb.EmbedRequest:
    inputs = [pb.PoolingInput(token_ids=pb.TokenIds(ids=ids)) for ids in prompts]
    return pb.EmbedRequest(inputs=inputs, **fields)  # type: ignore[arg-type]


async def failure(call: "grpc.aio.UnaryUnaryCall") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_answers_stand_in_the_order_of_the_inputs(stub, engine: ScriptedPooler) -> None:
    prompts = [[n, n + 1, n + 2] for n in range(10)]
    call = stub.Embed(request(*prompts))
    await engine.submitted(10)
    last = dict(reversed(engine.waiting.items()))
    engine.waiting.clear()
    engine.waiting.update(last)
    engine.answer(4)
    engine.answer(6)
    answer = await call
    assert [list(vector.values) for vector in answer.embeddings] == prompts
    assert list(answer.prompt_tokens) == [3] * 10
    assert engine.aborted == []


@pytest.mark.parametrize("field", ["inputs", "queries", "documents"])
async def test_too_many_inputs(stub, engine: ScriptedPooler, field: str) -> None:
    def calls(count: int) -> "list[grpc.aio.UnaryUnaryCall]":
        one = pb.PoolingInput(token_ids=pb.TokenIds(ids=[1]))
        if field == "inputs":
            return [stub.Embed(pb.EmbedRequest(inputs=[one] * count)), stub.Pool(pb.PoolRequest(inputs=[one] * count)),
                    stub.Classify(pb.ClassifyRequest(inputs=[one] * count))]  # fmt: skip
        return [stub.Score(pb.ScoreRequest(**{"queries": [one], "documents": [one], field: [one] * count}))]

    for call in calls(MAX_PROMPTS + 1):
        code, message = await failure(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith(f"{field} has {MAX_PROMPTS + 1} entries: at most {MAX_PROMPTS} here (--max-prompts)")
        assert ("jaxllm-param", field) in [tuple(pair) for pair in await call.trailing_metadata()]
    assert engine.waiting == {}


async def test_more_numbers_than_an_answer_holds(stub, engine: ScriptedPooler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "MAX_NUMBERS", 11)
    engine.per_token = True
    inputs = [pb.PoolingInput(token_ids=pb.TokenIds(ids=ids)) for ids in ([1, 2], [3, 4])]  # of 3 numbers each
    code, message = await failure(stub.Pool(pb.PoolRequest(inputs=inputs, task=pb.POOLING_TASK_TOKEN_EMBED)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the inputs have 4 tokens of 3 numbers each: an answer holds 11 at most" in message
    assert not engine.waiting


async def test_as_many_inputs_as_a_call_takes(stub, engine: ScriptedPooler) -> None:
    call = stub.Embed(request(*[[1]] * MAX_PROMPTS))
    await engine.submitted(MAX_PROMPTS)
    engine.answer(MAX_PROMPTS)
    assert len((await call).embeddings) == MAX_PROMPTS


async def test_a_call_is_timed_as_a_whole(stub, engine: ScriptedPooler) -> None:
    """It waits until its first input is computed, and computes until its last has ended."""
    token_ids = [pb.PoolingInput(token_ids=pb.TokenIds(ids=[n])) for n in range(2)]
    for method, wire in (
        (stub.Embed, pb.EmbedRequest(inputs=token_ids)),
        (stub.Pool, pb.PoolRequest(inputs=token_ids)),
        (stub.Score, pb.ScoreRequest(queries=token_ids[:1], documents=token_ids[1:])),
    ):
        call = method(wire)
        await engine.submitted(2)
        await asyncio.sleep(0.05)
        for request, _ in engine.waiting.values():
            request.first_scheduled = time.monotonic()
            await asyncio.sleep(0.03)
        engine.answer(2)
        timings = (await call).timings
        assert 0.05 <= timings.queue_seconds <= timings.total_seconds - 0.06
        assert timings.prefill_seconds == pytest.approx(timings.total_seconds - timings.queue_seconds)
        assert (timings.decode_seconds, timings.first_token_seconds) == (0, 0)


async def test_a_call_that_begins_with_a_full_queue_is_refused(stub, engine: ScriptedPooler) -> None:
    engine.room = 0
    code, message = await failure(stub.Embed(request([1])))
    assert (code, message) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")


async def test_a_call_larger_than_the_queue_goes_through_it(stub, engine: ScriptedPooler) -> None:
    engine.room = 3
    prompts = [[n] for n in range(20)]
    call = stub.Embed(request(*prompts))
    while not call.done():
        engine.answer(2)
        await asyncio.sleep(0.005)
    assert [list(vector.values) for vector in (await call).embeddings] == prompts
    assert engine.most == 3


async def test_one_input_that_fails_ends_the_call_and_the_others(stub, engine: ScriptedPooler) -> None:
    for alive, expected in ((True, grpc.StatusCode.INTERNAL), (False, grpc.StatusCode.UNAVAILABLE)):
        call = stub.Embed(request([1], [2], [3]))
        await engine.submitted(3)
        ids = list(engine.waiting)
        engine.alive = alive
        engine.answer(1, FinishReason.ERROR, "it burnt")
        assert await failure(call) == (expected, "it burnt")
        assert sorted(engine.aborted) == ids[1:]
        engine.aborted.clear()
    code, message = await failure(stub.Embed(request([1])))
    assert (code, "engine is dead" in message) == (grpc.StatusCode.UNAVAILABLE, True)


async def test_a_cancelled_call_is_aborted(stub, engine: ScriptedPooler) -> None:
    call = stub.Embed(request([1], [2]))
    await engine.submitted(2)
    call.cancel()
    async with asyncio.timeout(20):
        while len(engine.aborted) < 2:
            await asyncio.sleep(0.002)


async def test_text_needs_a_tokenizer(stub, engine: ScriptedPooler) -> None:
    code, message = await failure(stub.Embed(pb.EmbedRequest(inputs=[pb.PoolingInput(text="a")])))
    assert (code, "no tokenizer" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)
