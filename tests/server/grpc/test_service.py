"""Each RPC over a real socket and a scripted engine: the answer, its status, and what the engine is told."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from scripted import ScriptedEngine, Served

from jaxllm.core import FinishReason, Logprobs
from jaxllm.errors import ConfigError
from jaxllm.server.grpc import calls, service, session
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.text import Tokenizer

STATUS = grpc.StatusCode


@pytest.fixture
def encode(tokenizer: Tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def request(request_id: str = "a", text: str = "hello", **fields) -> pb.GenerateRequest:
    sampling = {name: fields.pop(name) for name in list(fields) if name in pb.Sampling.DESCRIPTOR.fields_by_name}
    return pb.GenerateRequest(request_id=request_id, text=text, sampling=pb.Sampling(**sampling), **fields)


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def uniform(token_ids: list[int], top: int) -> Logprobs:
    """Log probabilities that tell their position: -0, -1, -2, ..."""
    count = len(token_ids)
    places = -np.arange(count, dtype=np.float32)
    return Logprobs(
        places,
        np.ones(count, np.int32),
        np.tile(np.arange(top, dtype=np.int32), (count, 1)),
        np.tile(places[:, None], (1, top)),
    )


class Session:
    """A client's side of one Session stream: chunks by request, as they have come."""

    def __init__(self, served: Served):
        self.stream = served.inference.Session()
        self.chunks: dict[str, list[pb.GenerateChunk]] = {}
        self.messages = self.largest = 0
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.stream:
            self.messages += 1
            self.largest = max(self.largest, message.ByteSize())
            for chunk in message.chunks:
                self.chunks.setdefault(chunk.request_id, []).append(chunk)

    async def generate(self, wire: pb.GenerateRequest) -> None:
        await self.stream.write(pb.SessionRequest(generate=wire))

    async def end(self, request_id: str) -> pb.GenerateChunk:
        """The last chunk of a request, once it has come."""

        def ended() -> bool:
            chunks = self.chunks.get(request_id)
            return bool(chunks) and (chunks[-1].HasField("finish") or chunks[-1].HasField("error"))

        await until(ended)
        return self.chunks[request_id][-1]

    def text(self, request_id: str) -> str:
        return "".join(chunk.text for chunk in self.chunks.get(request_id, []))


@pytest.fixture
async def stream(served: Served) -> AsyncIterator[Session]:
    stream = Session(served)
    yield stream
    stream.stream.cancel()
    await asyncio.gather(stream.reader, return_exceptions=True)


async def test_generate_answers_once(served: Served, encode) -> None:
    call = served.inference.Generate(request(temperature=0.0, max_tokens=9))
    (engine_request,) = await served.engine.submitted("a")
    assert engine_request.prompt == encode("hello")
    assert (engine_request.params.temperature, engine_request.params.top_k, engine_request.params.max_tokens) == (
        0,
        20,
        9,
    )
    served.engine.step({"a": encode("ab")})
    served.engine.step({"a": encode("c")}, finish=FinishReason.LENGTH)
    response = await call
    assert (response.request_id, response.text, response.token_ids) == ("a", "abc", encode("abc"))
    assert response.finish == pb.Finish(reason=pb.FINISH_REASON_LENGTH)
    assert response.counts == pb.Counts(prompt=5, completion=3, cached=2)
    assert response.prompt_token_ids == encode("hello")
    assert response.timings.queue_seconds == pytest.approx(1)
    assert response.timings.total_seconds == pytest.approx(7)
    assert not served.engine.aborted
    assert len(served.requests) == 0


async def test_generate_stream_answers_as_tokens_come(served: Served, encode) -> None:
    call = served.inference.GenerateStream(request())
    await served.engine.submitted("a")
    served.engine.step({"a": encode("ab")})
    first = await call.read()
    assert (first.text, first.token_ids, first.prompt_token_ids) == ("ab", encode("ab"), encode("hello"))
    assert not first.HasField("finish")
    assert not first.HasField("timings")
    served.engine.step({"a": [*encode("c"), 257]}, finish=FinishReason.STOP, stop_token=257)
    last = await call.read()
    assert (last.text, last.token_ids) == ("c", [*encode("c"), 257])
    assert not last.prompt_token_ids
    assert last.finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop_token_id=257)
    assert last.counts.completion == 4
    assert await call.read() is grpc.aio.EOF


async def test_chunks_that_took_long_are_followed_by_a_pause(
    served: Served, encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PAUSE", 2000.0)  # a chunk takes some tenths of a millisecond
    monkeypatch.setattr(session, "SOON", 0.0)
    call = served.inference.GenerateStream(request())
    await served.engine.submitted("a")
    served.engine.step({"a": encode("x")})
    assert (await call.read()).text == "x"
    for letter in "yz":  # without the pause each would be a chunk
        served.engine.step({"a": encode(letter)})
        await asyncio.sleep(0.02)
    served.engine.step({"a": []}, finish=FinishReason.LENGTH)
    chunk = await call.read()
    assert (chunk.text, chunk.finish.reason) == ("yz", pb.FINISH_REASON_LENGTH)


async def test_prompts_as_ids_and_as_chat(served: Served, engine: ScriptedEngine, encode) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    chat.template_kwargs.update({"shout": True})
    calls = [
        served.inference.Generate(pb.GenerateRequest(request_id="ids", token_ids=pb.TokenIds(ids=[1, 2, 3]))),
        served.inference.Generate(pb.GenerateRequest(request_id="chat", chat=chat)),
    ]
    by_ids, by_chat = await engine.submitted("ids", "chat")
    assert by_ids.prompt == [1, 2, 3]
    assert by_chat.prompt == encode("<user>hi!<assistant>")
    engine.step({"ids": [1], "chat": [1]}, finish=FinishReason.LENGTH)
    await asyncio.gather(*calls)


async def test_long_texts_are_worked_on_beside_the_event_loop(
    served: Served, engine: ScriptedEngine, encode, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its size is asked about: a prompt, a conversation, a text to tokenize, tokens to make text of."""
    (letter,) = encode("x")
    threads: set[bool] = set()

    def watched(method):
        def call(*arguments, **keywords):
            threads.add(threading.current_thread() is threading.main_thread())
            return method(*arguments, **keywords)

        return call

    for name in ("encode", "decode", "render_chat", "token_text"):
        monkeypatch.setattr(tokenizer, name, watched(getattr(tokenizer, name)))
    for size, on_the_loop in ((5, True), (session.INLINE_SIZE + 1, False)):
        text = "x" * size
        threads.clear()
        call = served.inference.Generate(request(request_id=f"a{size}", text=text))
        (engine_request,) = await engine.submitted(f"a{size}")
        assert engine_request.prompt == [letter] * size
        engine.step({f"a{size}": [1]}, finish=FinishReason.LENGTH)
        await call
        chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=text)])
        assert len((await served.inference.Tokenize(pb.TokenizeRequest(chat=chat))).token_ids) > size
        tokenized = await served.inference.Tokenize(pb.TokenizeRequest(text=text))
        back = await served.inference.Detokenize(pb.DetokenizeRequest(token_ids=tokenized.token_ids))
        assert (back.text, len(tokenized.tokens)) == (text, size)
        assert threads == {on_the_loop}


@pytest.mark.parametrize("count", [32_768, 131_072])
async def test_a_very_long_prompt_passes_any_clients_limits(
    served: Served, engine: ScriptedEngine, stream: Session, count: int
) -> None:
    ids = [i % 256 for i in range(count)]
    wire = pb.GenerateRequest(request_id="a", token_ids=pb.TokenIds(ids=ids))
    call = served.inference.Generate(wire)
    (engine_request,) = await engine.submitted("a")
    assert engine_request.prompt == ids
    engine.step({"a": [1]}, finish=FinishReason.LENGTH)
    assert (await call).prompt_token_ids == ids
    wire.request_id = "b"
    await stream.generate(wire)
    await engine.submitted("b")
    engine.step({"b": [1]}, finish=FinishReason.LENGTH)
    assert (await stream.end("b")).prompt_token_ids == ids


async def test_priority_salt_and_deadline_reach_the_engine(served: Served, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request(priority=-3, cache_salt="mine", timeout_seconds=60))
    (engine_request,) = await engine.submitted("a")
    assert (engine_request.priority, engine_request.cache_salt) == (-3, "mine")
    assert engine_request.deadline == pytest.approx(time.monotonic() + 60, abs=5)
    engine.step({"a": [1]}, finish=FinishReason.LENGTH)
    await call


async def test_the_server_chooses_an_id(served: Served, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request(request_id=""))
    await engine.anything()
    (chosen,) = engine.requests
    engine.step({chosen: [1]}, finish=FinishReason.LENGTH)
    assert (await call).request_id == chosen


async def test_a_stop_string_ends_the_request_in_the_engine_too(served: Served, encode) -> None:
    call = served.inference.Generate(request(stop=["END"]))
    await served.engine.submitted("a")
    served.engine.step({"a": encode("one E")})
    served.engine.step({"a": encode("ND and more")})
    response = await call
    assert response.text == "one "
    assert response.token_ids == encode("one END")
    assert response.counts.completion == 7
    assert response.finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop_string="END")
    assert served.engine.aborted == [("a", FinishReason.STOP)]


async def test_an_id_is_free_again_as_soon_as_its_end_is_told(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.Generate(request(stop=["x"]))
    (first,) = await engine.submitted("a")
    engine.abort = lambda request_id, reason=None: True  # the engine is slow to end it
    engine.step({"a": encode("x")})
    await call
    call = served.inference.Generate(request())
    await until(lambda: engine.requests["a"] is not first)
    engine.step({"a": encode("y")}, finish=FinishReason.LENGTH)
    assert (await call).text == "y"


async def test_token_ids_alone(served: Served, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request(detokenize=False))
    await engine.submitted("a")
    engine.step({"a": [5, 6]}, finish=FinishReason.LENGTH)
    response = await call
    assert (response.text, response.token_ids, response.counts.completion) == ("", [5, 6], 2)


async def test_logprobs_of_prompt_and_output(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.GenerateStream(request(logprobs=2, prompt_logprobs=1))
    await engine.submitted("a")
    engine.step({"a": []}, prompt_logprobs=uniform([0, 0], 1))  # the first chunk of the prompt
    engine.step({"a": encode("xy")}, prompt_logprobs=uniform([0, 0], 1), logprobs=uniform([0, 0], 2))
    engine.step({"a": encode("z")}, logprobs=uniform([0], 2), finish=FinishReason.LENGTH)
    chunks = [chunk async for chunk in call]
    prompt = [entry for chunk in chunks for entry in chunk.prompt_logprobs]
    assert [entry.token for entry in prompt] == list("ello")
    assert [entry.logprob for entry in prompt] == [0, -1, 0, -1]
    drawn = [entry for chunk in chunks for entry in chunk.logprobs]
    assert [entry.token for entry in drawn] == list("xyz")
    assert [len(entry.top) for entry in drawn] == [2, 2, 2]


async def test_a_great_prompts_logprobs_come_in_chunks_that_any_client_takes(
    stream: Session, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CHUNK_WEIGHT", 60)
    monkeypatch.setattr(service, "MESSAGE_BYTES", 4000)
    count = 500
    await stream.generate(
        pb.GenerateRequest(request_id="a", token_ids=pb.TokenIds(ids=[65] * count), sampling={"prompt_logprobs": 5})
    )
    await served.engine.submitted("a")
    served.engine.step({"a": [66]}, prompt_logprobs=uniform([0] * (count - 1), 5), finish=FinishReason.LENGTH)
    await stream.end("a")
    chunks = stream.chunks["a"]
    assert [entry.logprob for chunk in chunks for entry in chunk.prompt_logprobs] == [-float(i) for i in range(499)]
    assert max(len(chunk.prompt_logprobs) for chunk in chunks) == 10
    assert [chunk.text for chunk in chunks if chunk.token_ids] == ["c"]
    assert stream.messages > sum(chunk.ByteSize() for chunk in chunks) / 4000
    assert stream.largest <= 4000 + 10


async def test_cancellation_ends_the_request(served: Served, engine: ScriptedEngine, encode) -> None:
    calls = [served.inference.Generate(request("a")), served.inference.GenerateStream(request("b"))]
    await engine.submitted("a", "b")
    engine.step({"a": encode("x"), "b": encode("x")})
    for call in calls:
        call.cancel()
    await until(lambda: sorted(engine.aborted) == [("a", FinishReason.ABORT), ("b", FinishReason.ABORT)])
    assert len(served.requests) == 0


async def test_the_calls_own_deadline(served: Served, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request(), timeout=0.2)
    (engine_request,) = await engine.submitted("a")
    assert 0 < engine_request.deadline - time.monotonic() < 0.21
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is STATUS.DEADLINE_EXCEEDED
    await until(lambda: engine.aborted == [("a", FinishReason.ABORT)])


async def test_the_calls_own_deadline_seen_by_the_engine_first(served: Served, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request(), timeout=60)
    await engine.submitted("a")
    engine.step({"a": [5]}, finish=FinishReason.DEADLINE)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is STATUS.DEADLINE_EXCEEDED


async def test_the_requests_timeout_is_an_answer(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.Generate(request(timeout_seconds=30), timeout=60)
    (engine_request,) = await engine.submitted("a")
    assert engine_request.deadline - engine_request.arrival == pytest.approx(30, abs=1)
    engine.step({"a": encode("so far")}, finish=FinishReason.DEADLINE)
    response = await call
    assert (response.text, response.finish.reason) == ("so far", pb.FINISH_REASON_DEADLINE)


BAD = {
    "no prompt": (pb.GenerateRequest(), "prompt", "the prompt is empty"),
    "empty text": (pb.GenerateRequest(text=""), "prompt", "the prompt is empty"),
    "no messages": (pb.GenerateRequest(chat=pb.Chat()), "messages", "messages is empty"),
    "outside": (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[999])), "prompt", "outside the vocabulary"),
    "top_p": (request(top_p=0.0), "top_p", "top_p=0.0: must be in (0, 1]"),
    "nan": (request(temperature=float("nan")), "temperature", "must be a finite number"),
    "max_tokens": (request(max_tokens=0), "max_tokens", "must be at least 1"),
    "timeout": (request(timeout_seconds=-1.0), "timeout_seconds", "must be a positive number"),
    "unknown field": (pb.GenerateRequest.FromString(b"\xe8\x04\x01"), None, "GenerateRequest has no field number 77"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_requests(served: Served, stream: Session, case: str) -> None:
    wire, param, message = BAD[case]
    for call in (served.inference.Generate(wire), served.inference.GenerateStream(wire)):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else call.read())
        assert raised.value.code() is STATUS.INVALID_ARGUMENT
        assert message in raised.value.details()
        assert dict(raised.value.trailing_metadata()).get("jaxllm-param") == param
    wire = pb.GenerateRequest.FromString(wire.SerializeToString())
    wire.request_id = "a"
    await stream.generate(wire)
    error = (await stream.end("a")).error
    assert (error.code, error.param) == (STATUS.INVALID_ARGUMENT.value[0], param or "")
    assert message in error.message
    assert len(served.requests) == 0
    assert not served.engine.requests


async def status(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


async def test_an_unknown_model(served: Served) -> None:
    for call in (
        served.inference.Generate(request(model="other")),
        served.inference.Tokenize(pb.TokenizeRequest(text="x", model="other")),
        served.inference.Detokenize(pb.DetokenizeRequest(model="other")),
    ):
        code, message = await status(call)
        assert code is STATUS.NOT_FOUND
        assert message == "model='other' is not served here; 'scripted' is, and is also taken when empty"


@pytest.mark.parametrize("character", ["x", "\n", "語", "\U0001f600"])
async def test_a_message_that_quotes_much_keeps_its_status(served: Served, character: str) -> None:
    code, message = await status(served.inference.Tokenize(pb.TokenizeRequest(text="x", model=character * 20_000)))
    assert code is STATUS.NOT_FOUND
    assert message.startswith("model=")
    assert message.endswith("…")


async def test_the_served_models_name_is_accepted(served: Served) -> None:
    await served.inference.Tokenize(pb.TokenizeRequest(text="x", model="scripted"))


async def test_an_id_in_use(served: Served, stream: Session, engine: ScriptedEngine, encode) -> None:
    await stream.generate(request("a"))
    await engine.submitted("a")
    code, message = await status(served.inference.Generate(request("a")))
    assert code is STATUS.ALREADY_EXISTS
    assert message.startswith("request_id='a': a request of that id is still running")
    await stream.generate(request("a"))
    assert (await stream.end("a")).error.code == STATUS.ALREADY_EXISTS.value[0]
    engine.step({"a": encode("goes on")}, finish=FinishReason.LENGTH)
    await until(lambda: stream.text("a") == "goes on")


async def test_a_full_queue(served: Served, stream: Session, engine: ScriptedEngine) -> None:
    engine.full = True
    assert await status(served.inference.Generate(request())) == (STATUS.RESOURCE_EXHAUSTED, "the queue is full")
    await stream.generate(request("b"))
    assert (await stream.end("b")).error.code == STATUS.RESOURCE_EXHAUSTED.value[0]
    assert len(served.requests) == 0


async def test_prompts_that_are_still_being_tokenized_fill_the_queue_too(
    stream: Session, engine: ScriptedEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.capacity = 3
    encoding = threading.Event()
    monkeypatch.setattr(tokenizer, "encode", lambda text, special: [1] * encoding.wait(5))
    for i in range(5):
        await stream.generate(request(str(i), text="x" * (session.INLINE_SIZE + 1)))
    for i in (3, 4):
        error = (await stream.end(str(i))).error
        assert (error.code, "3 requests run or wait already" in error.message) == (8, True)
    encoding.set()
    await engine.submitted("0", "1", "2")
    engine.step({name: [1] for name in "012"}, finish=FinishReason.LENGTH)
    await stream.end("2")
    await stream.generate(request("5"))
    await engine.submitted("5")


async def test_a_request_that_fails_alone(served: Served, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request())
    await engine.submitted("a")
    engine.step({"a": []}, finish=FinishReason.ERROR, error="its grammar broke")
    assert await status(call) == (STATUS.INTERNAL, "its grammar broke")


async def test_a_fault_in_one_requests_text_spares_the_others(served: Served, engine, encode, caplog) -> None:
    calls = [served.inference.Generate(request("a", logprobs=0)), served.inference.Generate(request("b"))]
    await engine.submitted("a", "b")
    engine.step({"a": [1]}, logprobs="no logprobs at all")
    engine.step({"b": encode("fine")}, finish=FinishReason.LENGTH)
    code, message = await status(calls[0])
    assert code is STATUS.INTERNAL
    assert message.startswith("AttributeError: ")
    assert (await calls[1]).text == "fine"
    assert engine.aborted == [("a", FinishReason.ERROR)]
    assert "request a failed" in caplog.text


async def test_a_dead_engine(served: Served, stream: Session, engine: ScriptedEngine) -> None:
    call = served.inference.Generate(request("a"))
    await stream.generate(request("b"))
    await engine.submitted("a", "b")
    engine.alive = False
    engine.step({"a": [], "b": []}, finish=FinishReason.ERROR, error="the engine died of x")
    assert await status(call) == (STATUS.UNAVAILABLE, "the engine died of x")
    assert (await stream.end("b")).error.code == STATUS.UNAVAILABLE.value[0]
    code, message = await status(served.inference.Generate(request("c")))
    assert (code, message.partition(":")[0]) == (STATUS.UNAVAILABLE, "the engine is dead")


async def test_a_draining_server_ends_what_runs_and_takes_nothing_new(served: Served, stream: Session, encode) -> None:
    await stream.generate(request("a"))
    await served.engine.submitted("a")
    served.requests.refusal = "the server is shutting down"
    await stream.generate(request("b"))
    error = (await stream.end("b")).error
    assert (error.code, error.message) == (STATUS.UNAVAILABLE.value[0], "the server is shutting down")
    served.engine.step({"a": encode("whole")}, finish=FinishReason.LENGTH)
    await stream.end("a")
    assert stream.text("a") == "whole"


async def test_nothing_is_answered_while_the_model_loads(served: Served) -> None:
    served.backend.engine = None
    for call in (
        served.inference.Generate(request()),
        served.inference.Tokenize(pb.TokenizeRequest(text="x")),
        served.control.GetModelInfo(pb.GetModelInfoRequest()),
        served.control.GetMetrics(pb.GetMetricsRequest()),
        served.inference.Session().read(),
    ):
        code, message = await status(call)
        assert code is STATUS.UNAVAILABLE
        assert "still loading" in message
    await served.control.GetServerInfo(pb.GetServerInfoRequest())


async def test_a_session_carries_many_requests(stream: Session, engine: ScriptedEngine, encode) -> None:
    names = [f"r{i}" for i in range(40)]
    for name in names:
        await stream.generate(request(name))
    await engine.submitted(*names)
    for letter in "abc":
        engine.step({name: encode(f"{letter}{name} ") for name in names})
    engine.step({name: [] for name in names}, finish=FinishReason.LENGTH)
    for name in names:
        await stream.end(name)
        assert stream.text(name) == f"a{name} b{name} c{name} "
        assert stream.chunks[name][0].prompt_token_ids == encode("hello")
        assert not any(chunk.prompt_token_ids for chunk in stream.chunks[name][1:])
    assert stream.messages <= 12, "a message holds what a step yields, not what a request does"


async def test_a_sessions_abort(stream: Session, engine: ScriptedEngine, encode) -> None:
    await stream.generate(request("a"))
    await stream.generate(request("b"))
    await engine.submitted("a", "b")
    engine.step({"a": encode("some"), "b": encode("some")})
    for name in ("a", "unknown"):
        await stream.stream.write(pb.SessionRequest(abort=name))
    last = await stream.end("a")
    assert (stream.text("a"), last.finish.reason) == ("some", pb.FINISH_REASON_ABORT)
    assert engine.aborted == [("a", FinishReason.ABORT)]
    engine.step({"b": encode("body")}, finish=FinishReason.LENGTH)
    await stream.end("b")
    assert stream.text("b") == "somebody"
    assert set(stream.chunks) == {"a", "b"}


async def test_a_message_that_cannot_be_read_ends_its_session_at_once(
    served: Served, engine: ScriptedEngine, encode
) -> None:
    """And what it had running; others go on."""
    other = served.inference.Generate(request("other"))
    await engine.submitted("other")
    method = "/jaxllm.v1.Inference/Session"
    raw = served.channel.stream_stream(method, None, pb.SessionResponse.FromString)()
    await raw.write(pb.SessionRequest(generate=request("a")).SerializeToString())
    await engine.submitted("a")
    await raw.write(b"\xff\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError):
        await asyncio.wait_for(raw.read(), 10)
    await until(lambda: engine.aborted == [("a", FinishReason.ABORT)])
    engine.step({"other": encode("x")}, finish=FinishReason.LENGTH)
    assert (await other).text == "x"


async def test_a_session_cannot_abort_anothers_request(served: Served, stream: Session, engine, encode) -> None:
    call = served.inference.Generate(request("a"))
    await engine.submitted("a")
    await stream.stream.write(pb.SessionRequest(abort="a"))
    await stream.generate(request("b", top_p=0.0))  # once it is refused, the abort has been read
    await stream.end("b")
    assert not engine.aborted
    engine.step({"a": encode("x")}, finish=FinishReason.LENGTH)
    await call


async def test_an_abort_before_the_engine_has_the_request(
    served: Served, stream: Session, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = threading.Event()
    monkeypatch.setattr(served.requests.tokenizer, "encode", lambda text, special: [1] * encoding.wait(5))
    await stream.generate(request("a", text="x" * (session.INLINE_SIZE + 1)))
    await stream.stream.write(pb.SessionRequest(abort="a"))
    assert (await stream.end("a")).finish.reason == pb.FINISH_REASON_ABORT
    encoding.set()
    await until(lambda: not served.requests._starting)
    assert not engine.requests


async def test_half_closing_a_session_lets_its_requests_end(stream: Session, engine: ScriptedEngine, encode) -> None:
    await stream.generate(request("a"))
    await stream.stream.done_writing()
    await engine.submitted("a")
    engine.step({"a": encode("x")})
    engine.step({"a": encode("y")}, finish=FinishReason.LENGTH)
    async with asyncio.timeout(20):
        await stream.reader
    assert stream.text("a") == "xy"
    assert await stream.stream.code() is STATUS.OK


async def test_a_broken_session_ends_all_its_requests(served: Served, stream: Session, engine: ScriptedEngine) -> None:
    other = served.inference.Generate(request("other"))
    names = ["a", "b", "c"]
    for name in names:
        await stream.generate(request(name))
    await engine.submitted(*names, "other")
    stream.stream.cancel()
    await until(lambda: sorted(engine.aborted) == [(name, FinishReason.ABORT) for name in names])
    assert len(served.requests) == 1
    engine.step({"other": [5]}, finish=FinishReason.LENGTH)
    await other


async def test_session_messages_that_say_nothing(stream: Session) -> None:
    await stream.stream.write(pb.SessionRequest())
    error = (await stream.end("")).error
    assert (error.code, error.param) == (STATUS.INVALID_ARGUMENT.value[0], "action")
    await stream.generate(request(""))
    await until(lambda: len(stream.chunks[""]) == 2)
    assert stream.chunks[""][1].error.param == "request_id"


async def test_a_slow_reader_gets_fewer_and_longer_chunks(served: Served, engine: ScriptedEngine, encode) -> None:
    """Nothing is read while 20,000 steps pass; the engine is not held up and nothing is lost."""
    call = served.inference.Session()
    await call.write(pb.SessionRequest(generate=request("a", detokenize=True)))
    await engine.submitted("a")
    steps, piece = 20_000, encode("tick tock ")
    for _ in range(steps // 100):
        for _ in range(100):
            engine._owners["a"](session.Delta("a", piece, num_prompt=5, num_output=10))
        await asyncio.sleep(0)  # the server's loop is this one
    engine.step({"a": []}, finish=FinishReason.LENGTH)
    chunks = []
    async with asyncio.timeout(10):
        while not (chunks and chunks[-1].HasField("finish")):
            chunks += (await call.read()).chunks
    assert "".join(chunk.text for chunk in chunks) == "tick tock " * steps
    assert sum(len(chunk.token_ids) for chunk in chunks) == len(piece) * steps
    assert len(chunks) < steps / 10
    call.cancel()


async def test_control_abort(served: Served, stream: Session, engine: ScriptedEngine, encode) -> None:
    unary = served.inference.Generate(request("a"))
    streamed = served.inference.GenerateStream(request("b"))
    await stream.generate(request("c"))
    await engine.submitted("a", "b", "c")
    engine.step({name: encode("some") for name in "abc"})
    assert (await served.control.Abort(pb.AbortRequest(request_id="nobody"))).aborted == 0
    assert (await served.control.Abort(pb.AbortRequest(request_id="a"))).aborted == 1
    response = await unary
    assert (response.text, response.finish.reason) == ("some", pb.FINISH_REASON_ABORT)
    assert (await served.control.Abort(pb.AbortRequest())).aborted == 2
    assert [chunk async for chunk in streamed][-1].finish.reason == pb.FINISH_REASON_ABORT
    assert (await stream.end("c")).finish.reason == pb.FINISH_REASON_ABORT


async def test_tokenize_and_detokenize(served: Served, encode) -> None:
    response = await served.inference.Tokenize(pb.TokenizeRequest(text="ab"))
    assert (response.token_ids, response.tokens, response.max_model_len) == (encode("ab"), ["a", "b"], 8192)
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="x")])
    response = await served.inference.Tokenize(pb.TokenizeRequest(chat=chat))
    assert response.token_ids == encode("<user>x<assistant>")
    assert (await served.inference.Tokenize(pb.TokenizeRequest(text=""))).token_ids == []
    ids = [256, *encode("hi")]
    assert (await served.inference.Detokenize(pb.DetokenizeRequest(token_ids=ids))).text == "<s>hi"
    skipped = pb.DetokenizeRequest(token_ids=ids, skip_special_tokens=True)
    assert (await served.inference.Detokenize(skipped)).text == "hi"


async def test_bad_tokenize_and_detokenize(served: Served) -> None:
    code, message = await status(served.inference.Tokenize(pb.TokenizeRequest()))
    assert (code, message) == (STATUS.INVALID_ARGUMENT, "nothing to tokenize: set text or chat")
    code, message = await status(served.inference.Detokenize(pb.DetokenizeRequest(token_ids=[5, 4000])))
    assert (code, message) == (STATUS.INVALID_ARGUMENT, "token_ids holds 4000: the vocabulary ends at 257")


async def test_control_says_what_there_is(served: Served) -> None:
    server = await served.control.GetServerInfo(pb.GetServerInfoRequest())
    assert server.version
    assert server.jax_version
    assert (server.platform, server.device) == ("cpu", "cpu")
    assert server.config["model"] == "scripted"
    model = await served.control.GetModelInfo(pb.GetModelInfoRequest())
    assert (model.name, model.max_model_len, model.eos_token_ids, model.has_chat_template) == (
        "scripted", 8192, [257], True,
    )  # fmt: skip
    assert model.max_requests == 900
    load = await served.control.GetLoad(pb.GetLoadRequest())
    assert (load.pages_total, load.cache_usage, load.generation_tokens) == (10, 0.5, 7)
    assert (await served.control.FlushPrefixCache(pb.FlushPrefixCacheRequest())).pages == 3
    assert (await served.control.GetMetrics(pb.GetMetricsRequest())).text == "jaxllm_up 1\n"


async def test_health(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    for name in ("", *service.SERVICES):
        response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    await served.health.set(False)
    response = await stub.Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_reflection(served: Served) -> None:
    def describe() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(served.channel_address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            found = DescriptorPool(database).FindServiceByName("jaxllm.v1.Inference")
            return list(database.get_services()), [method.name for method in found.methods]

    services, methods = await asyncio.to_thread(describe)
    assert {*service.SERVICES, "grpc.health.v1.Health"} <= set(services)
    generating, pooling = ["Generate", "GenerateStream", "Session"], ["Embed", "Classify", "Score", "Pool"]
    assert methods == [*generating, *pooling, "Tokenize", "Detokenize"]


async def test_a_port_in_use(served: Served) -> None:
    port = int(served.channel_address.rpartition(":")[2])
    server = service.make_server(served.backend, service.Health())
    with pytest.raises(ConfigError, match=rf"^grpc_port={port}: cannot listen on 127.0.0.1:{port}, .* --grpc-port"):
        service.listen(server, "127.0.0.1", port)
    await server.stop(None)
