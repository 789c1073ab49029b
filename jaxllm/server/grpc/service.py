"""The services `Inference` and `Control` on one grpc.aio server, with health and reflection beside them."""
# ruff: noqa: N802 (methods bear the names of their RPCs)

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import jaxllm
from jaxllm.errors import ConfigError, RequestError
from jaxllm.server.access import Keys
from jaxllm.server.grpc import conversions
from jaxllm.server.grpc.calls import Call
from jaxllm.server.grpc.conversions import CallError
from jaxllm.server.grpc.keys import KeyInterceptor
from jaxllm.server.grpc.labels import Caller, label
from jaxllm.server.grpc.pooling import PoolingCalls, pooling_info
from jaxllm.server.grpc.session import Requests, read_chat
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

MESSAGE_BYTES = 1 << 20  # of one SessionResponse, or one chunk if that is more; clients accept 4 MiB by default
DETAIL_BYTES = 2000
"""Of a status' message: it travels among the metadata, of which 8 KiB pass for sure, in up to thrice as many bytes;
with more of them clients see RESOURCE_EXHAUSTED in its place."""
RETRY_SECONDS = "1"  # a full queue and a model that loads pass: clients that retry should wait a little
SERVICES = ("jaxllm.v1.Inference", "jaxllm.v1.Control")
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a silent half of the traffic
    ("grpc.max_send_message_length", -1),
    # A client whose machine vanished is noticed, and its requests end.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


@dataclass(frozen=True)
class Engine:
    """What the services need of an engine that is ready.

    device: its kind as JAX names it, "cpu" or "NVIDIA H200". metrics: renders the exposition, in OpenMetrics' form
    if True.
    """

    requests: Requests
    device: str
    metrics: Callable[[bool], str]

    @functools.cached_property
    def pooling(self) -> PoolingCalls:
        return PoolingCalls(self.requests)

    @property
    def running(self) -> int:
        """Requests that have not been answered."""
        return len(self.requests) + len(self.pooling)


class Backend:
    """What the services stand on. `engine` is None while the model loads; `config` is what GetServerInfo shows."""

    def __init__(self, config: dict[str, Any]):
        self.config = config
        self.engine: Engine | None = None
        self.started = time.monotonic()

    @property
    def ready(self) -> Engine:
        """Raises CallError(UNAVAILABLE) while the model loads."""
        if self.engine is None:
            raise CallError(
                grpc.StatusCode.UNAVAILABLE, "the model is still loading: wait until the health service says SERVING"
            )
        return self.engine


@contextlib.asynccontextmanager
async def statuses(context: grpc.aio.ServicerContext, request: Message | None = None) -> AsyncIterator[None]:
    """Ends the call with the status that an error means; a request with unknown fields is such an error."""
    try:
        if request is not None:
            conversions.reject_unknown_fields(request)
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as raised:
        error = CallError.of(raised)
        if error.code is grpc.StatusCode.INTERNAL:
            log.exception("a call failed")
        trailing = [("jaxllm-param", error.param)] if error.param else []
        if error.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
            trailing.append(("retry-after", RETRY_SECONDS))
        if trailing:
            context.set_trailing_metadata(tuple(trailing))
        whole = error.message.encode(errors="replace")
        part = whole[:DETAIL_BYTES].decode(errors="ignore")
        await context.abort(error.code, part if len(whole) <= DETAIL_BYTES else f"{part}…")


class InferenceService(pb_grpc.InferenceServicer):
    def __init__(self, backend: Backend):
        self._backend = backend

    async def Generate(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> pb.GenerateResponse:
        async with self._call(request, context) as call:
            return conversions.response_of(_raise_error(await call.take(whole=True)))

    # The two streaming methods write to their context instead of yielding: a generator left suspended by a
    # cancelled call would be cleaned up at some later time, and its requests go on until then.
    async def GenerateStream(  # type: ignore[override]
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> None:
        async with self._call(request, context) as call:
            while chunks := _raise_error(await call.take()):
                for chunk in chunks:
                    await context.write(chunk)
                call.written(chunks)

    async def Session(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: grpc.aio.ServicerContext
    ) -> None:
        async with statuses(context):
            requests = self._backend.ready.requests
            call = Call(reading=True)
            reader = asyncio.create_task(_read_session(request_iterator, requests, call))

            def close(reading: asyncio.Task[None]) -> None:
                if not reading.cancelled() and reading.exception() is not None:
                    requests.discard(call)  # a message that cannot be read: nothing that follows it would be
                call.close()

            reader.add_done_callback(close)
            try:
                while chunks := await call.take():
                    for message in _messages(chunks):
                        await context.write(message)
                    call.written(chunks)
                await reader
            finally:
                reader.cancel()
                requests.discard(call)

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        async with self._pooling(request, context) as (pooling, caller):
            return await pooling.embed(request, caller)

    async def Classify(self, request: pb.ClassifyRequest, context: grpc.aio.ServicerContext) -> pb.ClassifyResponse:
        async with self._pooling(request, context) as (pooling, caller):
            return await pooling.classify(request, caller)

    async def Score(self, request: pb.ScoreRequest, context: grpc.aio.ServicerContext) -> pb.ScoreResponse:
        async with self._pooling(request, context) as (pooling, caller):
            return await pooling.score(request, caller)

    async def Pool(self, request: pb.PoolRequest, context: grpc.aio.ServicerContext) -> pb.PoolResponse:
        async with self._pooling(request, context) as (pooling, caller):
            return await pooling.pool(request, caller)

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        async with statuses(context, request):
            requests = self._backend.ready.requests
            requests.check_model(request.model)
            match request.WhichOneof("prompt"):
                case "text":
                    special = not request.HasField("add_special_tokens") or request.add_special_tokens
                    token_ids = await requests.encode(request.text, special)
                case "chat":
                    _, token_ids = await requests.encode_chat(await read_chat(request.chat))
                case _:
                    raise RequestError("nothing to tokenize: set text or chat", "prompt")
            return pb.TokenizeResponse(
                token_ids=token_ids,
                tokens=await requests.token_texts(token_ids),
                max_model_len=requests.client.info.max_model_len,
            )

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        async with statuses(context, request):
            requests = self._backend.ready.requests
            requests.check_model(request.model)
            token_ids, size = list(request.token_ids), requests.tokenizer.vocab_size
            if token_ids and max(token_ids) >= size:
                raise RequestError(f"token_ids holds {max(token_ids)}: the vocabulary ends at {size - 1}", "token_ids")
            return pb.DetokenizeResponse(text=await requests.decode(token_ids, request.skip_special_tokens))

    @contextlib.asynccontextmanager
    async def _pooling(
        self, request: Message, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[tuple[PoolingCalls, Caller]]:
        """What answers a call that pools, and who calls."""
        async with statuses(context, request):
            metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
            caller = Caller.of(metadata, context.time_remaining())
            if caller.client_request_id:
                await context.send_initial_metadata((("x-request-id", caller.client_request_id),))
            yield self._backend.ready.pooling, caller

    @contextlib.asynccontextmanager
    async def _call(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[Call]:
        """One request's call, begun; what still runs when it is left is aborted."""
        async with statuses(context, request):
            requests = self._backend.ready.requests
            metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
            label(request, metadata)
            if request.client_request_id:
                await context.send_initial_metadata((("x-request-id", request.client_request_id),))
            remaining = context.time_remaining()
            deadline = None if remaining is None else time.monotonic() + remaining
            call = Call()
            try:
                await requests.submit(requests.open(request, call), request, deadline)
                yield call
            finally:
                requests.discard(call)


class ControlService(pb_grpc.ControlServicer):
    def __init__(self, backend: Backend):
        self._backend = backend

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetServerInfoResponse:
        async with statuses(context, request):
            device = self._backend.engine.device if self._backend.engine else ""
            response = pb.GetServerInfoResponse(
                version=jaxllm.__version__,
                jax_version=importlib.metadata.version("jax"),
                platform=device if device in ("", "cpu") else "gpu",
                device=device,
                uptime_seconds=time.monotonic() - self._backend.started,
            )
            response.config.update(self._backend.config)
            return response

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelInfoResponse:
        async with statuses(context, request):
            requests = self._backend.ready.requests
            info = requests.client.info
            return pb.GetModelInfoResponse(
                name=info.name,
                aliases=info.aliases,
                architecture=info.architecture,
                dtype=info.dtype,
                parameters=info.num_parameters,
                vocab_size=info.vocab_size,
                max_model_len=info.max_model_len,
                eos_token_ids=info.eos_token_ids,
                has_chat_template=requests.has_chat_template,
                max_logprobs=info.max_logprobs,
                max_requests=requests.client.max_queued,
                default_max_tokens=info.generation_defaults.get("max_tokens") or 0,
                path=info.path,
                task="generate" if info.pooling is None else info.pooling.task,
                pooling=None if info.pooling is None else pooling_info(info.pooling),
            )

    async def GetLoad(self, request: pb.GetLoadRequest, context: grpc.aio.ServicerContext) -> pb.GetLoadResponse:
        async with statuses(context, request):
            return conversions.load_response(self._backend.ready.requests.client.load())

    async def Abort(self, request: pb.AbortRequest, context: grpc.aio.ServicerContext) -> pb.AbortResponse:
        async with statuses(context, request):
            requests, pooling = self._backend.ready.requests, self._backend.ready.pooling
            if name := request.request_id:
                return pb.AbortResponse(aborted=int(requests.abort(name) or pooling.abort(name)))
            return pb.AbortResponse(aborted=requests.abort_all() + pooling.abort_all())

    async def FlushPrefixCache(
        self, request: pb.FlushPrefixCacheRequest, context: grpc.aio.ServicerContext
    ) -> pb.FlushPrefixCacheResponse:
        async with statuses(context, request):
            requests = self._backend.ready.requests
            requests.check_serving()
            # The engine's thread does it between two steps; this one waits elsewhere than on the event loop.
            return pb.FlushPrefixCacheResponse(pages=await asyncio.to_thread(requests.client.flush_prefix_cache))

    async def GetMetrics(
        self, request: pb.GetMetricsRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetMetricsResponse:
        async with statuses(context, request):
            return pb.GetMetricsResponse(text=self._backend.ready.metrics(request.openmetrics))


class Health:
    """grpc.health.v1 for the server as a whole ("") and for each service, all with one status."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]

    async def set(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES):
            await self.servicer.set(name, status)


def make_server(
    backend: Backend, health: Health, keys: Keys | None = None, max_request_bytes: int = -1
) -> grpc.aio.Server:
    """A server with every service on it, listening nowhere yet. keys: those that calls must carry, if any."""
    options = (*OPTIONS, ("grpc.max_receive_message_length", max_request_bytes))
    server = grpc.aio.server(options=options, interceptors=[KeyInterceptor(keys)] if keys else [])
    pb_grpc.add_InferenceServicer_to_server(InferenceService(backend), server)
    pb_grpc.add_ControlServicer_to_server(ControlService(backend), server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    reflection.enable_server_reflection((*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
    return server


def listen(server: grpc.aio.Server, host: str, port: int, tls: grpc.ServerCredentials | None = None) -> int:
    """The port taken. Raises ConfigError when it is in use or the host is not this machine's."""
    try:
        if tls is not None:
            return server.add_secure_port(address(host, port), tls)
        return server.add_insecure_port(address(host, port))
    except RuntimeError as error:
        raise ConfigError(
            f"grpc_port={port}: cannot listen on {address(host, port)}, it is in use or not this machine's; "
            "choose another with --grpc-port (0 takes a free one) or --host"
        ) from error


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _read_session(messages: AsyncIterator[pb.SessionRequest], requests: Requests, call: Call) -> None:
    """Start and abort requests as the client's messages say, to the end of its side of the stream."""
    async for message in messages:
        try:
            conversions.reject_unknown_fields(message)
            match message.WhichOneof("action"):
                case "generate":
                    if not message.generate.request_id:
                        raise RequestError("request_id is empty: a session's chunks are told apart by it", "request_id")
                    requests.start(requests.open(message.generate, call), message.generate)
                case "abort":
                    # One that has ended meanwhile is no error: the abort and its last chunk crossed.
                    if message.abort in call.requests:
                        requests.abort(message.abort)
                case _:
                    raise RequestError("the message says neither generate nor abort", "action")
        except (RequestError, CallError) as error:
            call.fail(message.generate.request_id, CallError.of(error))


def _raise_error(chunks: list[pb.GenerateChunk]) -> list[pb.GenerateChunk]:
    """The chunks; CallError when the last one tells of an error."""
    if chunks and chunks[-1].HasField("error"):
        raise CallError.read(chunks[-1].error)
    return chunks


def _messages(chunks: Sequence[pb.GenerateChunk]) -> Iterator[pb.SessionResponse]:
    """As few messages as their size allows."""
    start = size = 0
    for i, chunk in enumerate(chunks):
        size += chunk.ByteSize()
        if size > MESSAGE_BYTES and i > start:
            yield pb.SessionResponse(chunks=chunks[start:i])
            start, size = i, chunk.ByteSize()
    yield pb.SessionResponse(chunks=chunks[start:])
