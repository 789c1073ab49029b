"""The front's one connection to the engine: every request runs over a single Session stream.

The Session is opened when the engine can be reached and reopened when it breaks; what was running over a broken one
ends with an error at once. Chunks are handed to their streams in batches: the next batch is handed out no sooner
than the last one took to write, so that under load the front spends at most half of its time on events, each
carries more tokens, and no queue grows.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc
from jaxllm.server.http.errors import ApiError, from_call, unavailable

CALL_SECONDS = 10.0
"""Limit of a unary call (tokenizing a long text takes longest)."""
HEALTH_SECONDS = 2.0
"""Limit of a health check: a hanging engine is not healthy."""
METRICS_SECONDS = 5.0
"""Limit of a look at the engine's metrics; Prometheus waits for 10 s."""
SILENCE_SECONDS = 5.0
"""When requests run and nothing comes for so long, the engine is asked for a sign of life; without one the Session
is given up (a machine that vanished closes no connection)."""
RETRY_SECONDS = 0.1
"""Pause before the Session is tried again: while the model loads, and after a break."""
CONNECT_SECONDS = 1.0
"""How long a request waits for a Session that is being opened."""
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

Metadata = tuple[tuple[str, str], ...]

log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The HTTP client closed its connection: nobody reads the answer."""


class Stream:
    """The chunks of the requests that one HTTP request makes. `async with` aborts those unfinished when it is left."""

    def __init__(self, link: "EngineLink", requests: Iterable[pb.GenerateRequest]):
        self._link = link
        self._unfinished = {request.request_id: request.sampling.n or 1 for request in requests}  # samples of each
        self._pending: list[pb.GenerateChunk] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def done(self) -> bool:
        """Every request has ended and every chunk was taken."""
        return not self._unfinished and not self._pending

    async def next(self) -> list[pb.GenerateChunk]:
        """The chunks that have come since the last call, one at least; raises what `fail` was given."""
        while not self._pending:
            if self._error:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks, self._pending = self._pending, []
        return chunks

    def push(self, chunk: pb.GenerateChunk) -> bool:
        """True with the last chunk of a request."""
        self._pending.append(chunk)
        if chunk.HasField("finish"):
            self._unfinished[chunk.request_id] -= 1
        if chunk.HasField("error") or not self._unfinished[chunk.request_id]:
            del self._unfinished[chunk.request_id]
            return True
        return False

    def wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """The reader gets what is pending, then this error."""
        self._error = self._error or error
        self.wake()

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._link.release(self._unfinished)


class EngineLink:
    """Holds the channel and the Session. `model` is what the engine serves, known once it was reached."""

    def __init__(self, target: str):
        self.target = target
        self.model: pb.GetModelInfoResponse | None = None
        self._streams: dict[str, Stream] = {}
        self._calls: set[Any] = set()  # unary ones, for as long as they are computed
        self._outbox: asyncio.Queue[pb.SessionRequest] | None = None
        self._opened = asyncio.Event()
        self._ready: set[Stream] = set()
        self._flush_due = False
        self._next_flush = 0.0
        self._heard = 0.0

    async def start(self) -> None:
        self._channel = grpc.aio.insecure_channel(self.target, OPTIONS)
        self._inference = pb_grpc.InferenceStub(self._channel)
        self._control = pb_grpc.ControlStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._task = asyncio.create_task(self._run(), name="session")

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._channel.close(None)

    @property
    def connected(self) -> bool:
        return self._outbox is not None

    @property
    def running(self) -> int:
        return len(self._streams)

    async def connect(self) -> pb.GetModelInfoResponse:
        """The model served, once there is a Session; raises ApiError when there is none in CONNECT_SECONDS."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._opened.wait()
        if self.model is None or self._outbox is None:
            raise unavailable(f"the engine at {self.target} cannot be reached")
        return self.model

    def submit(self, requests: list[pb.GenerateRequest]) -> Stream:
        """Starts the requests, whose ids must be new; their chunks come through the stream. Needs a Session."""
        if self._outbox is None:
            raise unavailable(f"the engine at {self.target} cannot be reached")
        stream = Stream(self, requests)
        for request in requests:
            self._streams[request.request_id] = stream
            self._outbox.put_nowait(pb.SessionRequest(generate=request))
        return stream

    def release(self, unfinished: Iterable[str]) -> None:
        """Forgets these requests and has the engine abort them."""
        for request_id in unfinished:
            if self._streams.pop(request_id, None) and self._outbox:
                self._outbox.put_nowait(pb.SessionRequest(abort=request_id))

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        return await _call(self._inference.Tokenize(request, timeout=CALL_SECONDS))

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        return await _call(self._inference.Detokenize(request, timeout=CALL_SECONDS))

    async def embed(self, request: pb.EmbedRequest, metadata: Metadata = ()) -> pb.EmbedResponse:
        return await self._compute(self._inference.Embed(request, metadata=metadata))

    async def classify(self, request: pb.ClassifyRequest, metadata: Metadata = ()) -> pb.ClassifyResponse:
        return await self._compute(self._inference.Classify(request, metadata=metadata))

    async def score(self, request: pb.ScoreRequest, metadata: Metadata = ()) -> pb.ScoreResponse:
        return await self._compute(self._inference.Score(request, metadata=metadata))

    async def pool(self, request: pb.PoolRequest, metadata: Metadata = ()) -> pb.PoolResponse:
        return await self._compute(self._inference.Pool(request, metadata=metadata))

    async def _compute[T](self, call: Awaitable[T]) -> T:
        """A call that takes the engine as long as it takes, while it lives. Cancelling this aborts it there."""
        self._calls.add(call)
        try:
            return await _call(call)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise unavailable("the engine is silent") from None
        finally:
            self._calls.discard(call)

    async def model_info(self) -> pb.GetModelInfoResponse:
        """What the engine serves. Asked for anew, so that a restarted engine with another model is noticed."""
        self.model = await _call(self._control.GetModelInfo(pb.GetModelInfoRequest(), timeout=CALL_SECONDS))
        return self.model

    async def server_info(self) -> pb.GetServerInfoResponse:
        return await _call(self._control.GetServerInfo(pb.GetServerInfoRequest(), timeout=CALL_SECONDS))

    async def metrics(self, openmetrics: bool) -> str:
        return (
            await _call(
                self._control.GetMetrics(pb.GetMetricsRequest(openmetrics=openmetrics), timeout=METRICS_SECONDS)
            )
        ).text

    async def healthy(self) -> bool:
        """Whether the engine says SERVING, and requests can reach it."""
        if not self.connected:
            return False
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def _run(self) -> None:
        """Keeps a Session open, for ever."""
        reported = ""
        while True:
            try:
                await self._channel.channel_ready()
                await self.model_info()
                await self._session()
                why = "closed by the engine"
            except grpc.aio.AioRpcError as error:
                why = error.details() or error.code().name
            except ApiError as error:
                why = error.message
            except Exception:  # a fault of ours: the next Session may do without it, and no Session serves nobody
                log.exception("the session with the engine at %s failed", self.target)
                why = reported
            if why != reported:
                log.warning("no session with the engine at %s: %s", self.target, why)
                reported = why
            await asyncio.sleep(RETRY_SECONDS)

    async def _session(self) -> None:
        """One Session, from its opening to its end; then every stream that ran over it fails."""
        call: Any = self._inference.Session()  # type: ignore[call-arg]  # grpc-stubs knows only call by iterator
        self._outbox = asyncio.Queue()
        self._opened.set()
        helpers = [asyncio.create_task(self._write(call, self._outbox)), asyncio.create_task(self._watch(call))]
        log.info("session with the engine at %s is open", self.target)
        try:
            while isinstance(response := await call.read(), pb.SessionResponse):
                self._deliver(response)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            raise unavailable("the engine is silent") from None
        finally:
            self._outbox = None
            self._opened.clear()
            for helper in helpers:
                helper.cancel()
            call.cancel()
            streams, self._streams = set(self._streams.values()), {}
            for stream in streams:
                stream.fail(unavailable("the connection to the engine broke"))

    async def _watch(self, call: Any) -> None:
        """Gives the Session up when requests wait on an engine that shows no sign of life."""
        while True:
            before = self._heard
            await asyncio.sleep(SILENCE_SECONDS)
            if not (self._streams or self._calls) or self._heard != before:
                continue
            try:
                await self._health.Check(health_pb2.HealthCheckRequest(), timeout=SILENCE_SECONDS)
            except grpc.aio.AioRpcError as error:
                log.warning("the engine at %s is silent: %s", self.target, error.details())
                for silent in (call, *self._calls):
                    silent.cancel()
                return

    @staticmethod
    async def _write(call: Any, outbox: "asyncio.Queue[pb.SessionRequest]") -> None:
        """Sends what is put into the outbox. A broken call ends here quietly: the reader sees it too and reports it."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(await outbox.get())

    def _deliver(self, response: pb.SessionResponse) -> None:
        for chunk in response.chunks:
            stream = self._streams.get(chunk.request_id)
            if stream is None:
                continue  # its client went away; the abort is under way
            if stream.push(chunk):
                del self._streams[chunk.request_id]
            self._ready.add(stream)
        self._heard = asyncio.get_running_loop().time()
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._ready or self._flush_due:
            return
        self._flush_due = True
        loop = asyncio.get_running_loop()
        if self._next_flush - loop.time() > 0.001:  # timers are no finer
            loop.call_at(self._next_flush, self._flush)
        else:
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Wakes the streams that have chunks, then measures how long their readers take to write them."""
        begin = time.thread_time()  # not by the clock: a machine that is busy elsewhere must not slow streams twice
        ready, self._ready = self._ready, set()
        for stream in ready:
            stream.wake()
        # The loop runs callbacks in order: this one comes after every reader woken above has had its turn.
        asyncio.get_running_loop().call_soon(self._flushed, begin)

    def _flushed(self, begin: float) -> None:
        self._next_flush = asyncio.get_running_loop().time() + (time.thread_time() - begin)
        self._flush_due = False
        self._schedule_flush()


async def _call[T](call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_call(error) from None
