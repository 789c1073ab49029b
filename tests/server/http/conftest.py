"""A front before a scripted engine: real sockets, no model. The engine plays back what each prompt asks for."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai_document import OpenApi

from jaxllm.config import ServerConfig
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc
from jaxllm.server.http.__main__ import listen
from jaxllm.server.http.app import build

WORDS = ["Once", " upon", " a", " tïme", ",", " there", " was", " a", ' "', "cat", '"', " in", " the", " hat", "."]


TIMINGS = pb.Timings(queue_seconds=0.25, decode_seconds=0.5)


def token(index: int) -> str:
    return WORDS[index % len(WORDS)]


def logprob(index: int, top: int) -> pb.TokenLogprob:
    """Token `index` is its position's most likely; the k-th most likely has log probability -k/8."""
    entry = pb.TokenLogprob(
        token_id=index, logprob=-0.125, rank=1, token=token(index), token_bytes=token(index).encode()
    )
    for k in range(top):
        text = token(index + k)
        entry.top.add(token_id=index + k, logprob=-(k + 1) / 8, token=text, token_bytes=text.encode())
    return entry


CALLING = [
    pb.GenerateChunk(reasoning="They want "),
    pb.GenerateChunk(reasoning="the weather."),
    pb.GenerateChunk(text="I look."),
    pb.GenerateChunk(tool_calls=[pb.ToolCallDelta(index=0, id="call_1", name="look")]),
    pb.GenerateChunk(tool_calls=[pb.ToolCallDelta(index=0, arguments='{"city": "Pa')]),
    pb.GenerateChunk(tool_calls=[
        pb.ToolCallDelta(index=0, arguments='ris"}'),
        pb.ToolCallDelta(index=1, id="call_2", name="wait", arguments="{"),
    ]),
    pb.GenerateChunk(tool_calls=[pb.ToolCallDelta(index=1, arguments="}")]),
]  # fmt: skip


def sizes(inputs: Sequence[pb.PoolingInput]) -> list[int]:
    """Words of texts, or how many token ids there are."""
    return [len(each.text.split()) or len(each.token_ids.ids) for each in inputs]


class ScriptedEngine(pb_grpc.InferenceServicer, pb_grpc.ControlServicer, health_pb2_grpc.HealthServicer):
    """Answers a prompt with WORDS, one a chunk, as many as max_tokens says. Prompts that begin otherwise:

    "fail CODE [after N]": an Error with that code after N tokens. "end REASON": that finish after one token.
    "slow": a token every 20 ms (so do "fail" and "mute"). "mute": token ids without text. "hang": nothing.
    "stop": ends at the stop string "was". "call": CALLING, as far as max_tokens allows. "over": ends at
    its first token. "blame PARAM MESSAGE": refused with that; so it is where prompts are tokenized, embedded or scored.

    What it pools of an input is its size.
    """

    def __init__(self) -> None:
        self.requests: dict[str, pb.GenerateRequest] = {}
        self.aborted: list[str] = []
        self.running = 0
        self.status = health_pb2.HealthCheckResponse.SERVING

    async def Session(self, incoming: Any, context: grpc.aio.ServicerContext) -> None:  # noqa: N802
        tasks: dict[str, asyncio.Task[None]] = {}
        writing = asyncio.Lock()
        try:
            async for message in incoming:
                if message.WhichOneof("action") == "abort":
                    self.aborted.append(message.abort)
                    tasks[message.abort].cancel()
                    continue
                request = message.generate
                self.requests[request.request_id] = request
                tasks[request.request_id] = asyncio.create_task(self._answer(request, context, writing))
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        finally:
            for task in tasks.values():
                task.cancel()

    async def _answer(self, request: pb.GenerateRequest, context: Any, writing: asyncio.Lock) -> None:
        self.running += 1
        try:
            for index in range(request.sampling.n or 1):  # every sample alike
                async for chunk in self._chunks(request):
                    chunk.request_id, chunk.index = request.request_id, index
                    if index:
                        del chunk.prompt_logprobs[:]
                    async with writing:  # gRPC allows one write at a time
                        await context.write(pb.SessionResponse(chunks=[chunk]))
        finally:
            self.running -= 1

    async def _chunks(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateChunk]:
        text = request.text or " ".join(message.content for message in request.chat.messages)
        verb, *rest = text.split() or [""]
        sampling = request.sampling
        limit = sampling.max_tokens if sampling.HasField("max_tokens") else len(WORDS)
        prompt = list(request.token_ids.ids) or list(range(len(text.split())))
        if request.model and request.model != "scripted":
            error = pb.Error(code=5, message=f"model {request.model!r} is not served here", param="model")
            yield pb.GenerateChunk(error=error)
            return
        if verb == "blame":
            yield pb.GenerateChunk(error=pb.Error(code=3, message=text.split(None, 2)[2], param=rest[0]))
            return
        if verb == "hang":
            await asyncio.sleep(3600)
        if verb == "fail" and len(rest) == 1:
            yield pb.GenerateChunk(error=pb.Error(code=int(rest[0]), message="as scripted", param="prompt"))
            return
        for index, scripted in enumerate(CALLING[:limit] if verb == "call" else ()):
            chunk = pb.GenerateChunk(token_ids=[index])
            chunk.MergeFrom(scripted)
            chunk.counts.prompt, chunk.counts.completion = len(prompt), index + 1
            chunk.counts.reasoning = min(index + 1, sum(bool(chunk.reasoning) for chunk in CALLING))
            if index == min(limit, len(CALLING)) - 1:
                reason = pb.FINISH_REASON_STOP if index == len(CALLING) - 1 else pb.FINISH_REASON_LENGTH
                chunk.finish.reason = reason
                chunk.timings.CopyFrom(TIMINGS)
            yield chunk
            await asyncio.sleep(0.02)
        for index in range(limit if verb != "call" else 0):
            mute = verb == "mute" or (sampling.HasField("detokenize") and not sampling.detokenize)
            chunk = pb.GenerateChunk(text="" if mute else token(index), token_ids=[index])
            chunk.counts.prompt, chunk.counts.completion, chunk.counts.cached = len(prompt), index + 1, len(prompt) // 2
            if index == 0:
                chunk.prompt_token_ids.extend(prompt)
                if sampling.HasField("prompt_logprobs"):
                    chunk.prompt_logprobs.extend(logprob(i, sampling.prompt_logprobs) for i in prompt[1:])
                if sampling.echo:
                    chunk.text = "".join(map(token, prompt)) + chunk.text
                    first = token(prompt[0])
                    chunk.prompt_logprobs.insert(0, pb.TokenLogprob(token=first, token_bytes=first.encode()))
            if sampling.HasField("logprobs"):
                chunk.logprobs.append(logprob(index, sampling.logprobs))
            if verb == "fail" and index == int(rest[2]):
                yield pb.GenerateChunk(error=pb.Error(code=int(rest[0]), message="as scripted"))
                return
            if verb == "end":
                chunk.finish.reason = pb.FinishReason.Value(f"FINISH_REASON_{rest[0]}")
            elif verb == "stop" and token(index) == " was":
                chunk.text = " "
                chunk.finish.reason = pb.FINISH_REASON_STOP
                chunk.finish.stop_string = "was"
            elif verb == "over":
                chunk.finish.reason, chunk.finish.stop_token_id = pb.FINISH_REASON_STOP, 2
            elif index == limit - 1:
                chunk.finish.reason = pb.FINISH_REASON_LENGTH
            if chunk.HasField("finish"):
                chunk.timings.CopyFrom(TIMINGS)
            yield chunk
            if chunk.HasField("finish"):
                return
            if verb in ("slow", "fail", "mute"):
                await asyncio.sleep(0.02)

    @staticmethod
    async def _blame(text: str, context: Any) -> None:
        if text.startswith("blame "):
            _, param, message = text.split(None, 2)
            context.set_trailing_metadata((("jaxllm-param", param),))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        await self._blame(request.inputs[0].text, context)
        counts = sizes(request.inputs)
        vectors = [pb.Vector(values=[count]) for count in counts]
        return pb.EmbedResponse(embeddings=vectors, prompt_tokens=counts, timings=TIMINGS)

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:  # noqa: N802
        counts = sizes(request.inputs)
        vectors = [pb.Vector(values=[count, 0]) for count in counts]
        return pb.ClassifyResponse(probs=vectors, prompt_tokens=counts, timings=TIMINGS)

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802
        await self._blame(request.queries[0].text, context)
        counts = sizes(request.documents)
        return pb.ScoreResponse(scores=counts, prompt_tokens=counts, timings=TIMINGS)

    async def Pool(self, request: pb.PoolRequest, context: Any) -> pb.PoolResponse:  # noqa: N802
        counts = sizes(request.inputs)
        data = [pb.PoolResponse.Numbers(values=[count], columns=1) for count in counts]
        return pb.PoolResponse(data=data, prompt_tokens=counts, timings=TIMINGS)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        text = request.text or " ".join(message.content for message in request.chat.messages)
        await self._blame(text, context)
        words = text.split()
        return pb.TokenizeResponse(token_ids=range(len(words)), tokens=words, max_model_len=64)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:  # noqa: N802
        if any(index >= 1000 for index in request.token_ids):
            context.set_trailing_metadata((("jaxllm-param", "token_ids"),))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the vocabulary ends at 999")
        return pb.DetokenizeResponse(text="".join(token(index) for index in request.token_ids))

    async def GetModelInfo(self, request: Any, context: Any) -> pb.GetModelInfoResponse:  # noqa: N802
        return pb.GetModelInfoResponse(
            name="scripted", aliases=["other-name"], path="/models/scripted", max_model_len=64, max_requests=100
        )

    async def GetServerInfo(self, request: Any, context: Any) -> pb.GetServerInfoResponse:  # noqa: N802
        return pb.GetServerInfoResponse(version="1.2.3")

    async def GetMetrics(self, request: Any, context: Any) -> pb.GetMetricsResponse:  # noqa: N802
        return pb.GetMetricsResponse(text="# TYPE jaxllm_num_requests_running gauge\njaxllm_num_requests_running 0.0\n")

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        return health_pb2.HealthCheckResponse(status=self.status)


def parse_events(text: str) -> list[Any]:
    *events, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


class Front:
    """The front and its engine on a thread with an event loop of their own; `call` runs a coroutine there."""

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.engine = ScriptedEngine()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.grpc_port = self.call(self.start_engine())
        self._listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.client = httpx.Client(base_url=self.url, timeout=20)
        self.app = build(f"127.0.0.1:{self.grpc_port}", config)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, access_log=False))
        self._serving = asyncio.run_coroutine_threadsafe(self._server.serve([self._listener]), self._loop)
        self.wait(lambda: self.get("/health").status_code == 200)

    def call[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def events(self, path: str, **body: Any) -> list[Any]:
        """The data of a stream's events, parsed; the last must be [DONE]."""
        answer = self.post(path, stream=True, **body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return parse_events(answer.text)

    @property
    def last_request(self) -> pb.GenerateRequest:
        return list(self.engine.requests.values())[-1]

    def wait(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        async def poll() -> None:
            while not await asyncio.to_thread(condition):
                await asyncio.sleep(0.02)

        self.call(asyncio.wait_for(poll(), seconds))

    async def start_engine(self, port: int = 0) -> int:
        self._grpc = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_InferenceServicer_to_server(self.engine, self._grpc)
        pb_grpc.add_ControlServicer_to_server(self.engine, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.engine, self._grpc)
        bound = self._grpc.add_insecure_port(f"127.0.0.1:{port}")
        await self._grpc.start()
        return bound

    async def stop_engine(self) -> None:
        await self._grpc.stop(None)

    def close(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._serving.result(20)
        self.call(self.stop_engine())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture(scope="session")
def front_class() -> type[Front]:
    return Front


@pytest.fixture
def front() -> Iterator[Front]:
    with contextlib.closing(Front()) as front:
        yield front


@pytest.fixture(scope="session")
def shared_front() -> Iterator[Front]:
    """For tests that leave the engine as they found it."""
    with contextlib.closing(Front()) as front:
        yield front


@pytest.fixture(scope="session")
def openapi(material: Path) -> OpenApi:
    return OpenApi.load(material)
