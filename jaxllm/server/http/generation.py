"""Runs a request on the engine and answers it, in whatever dialect: the seam between the link and the answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jaxllm.server.grpc.labels import label
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.errors import ApiError, error_response
from jaxllm.server.http.link import ClientGoneError, EngineLink, Stream
from jaxllm.server.http.traffic import Traffic

IDLE_SECONDS = 15.0
"""Silence after which a dialect that has idle events sends them: proxies close connections that say nothing."""


class Answer(Protocol):
    """One dialect's answer to one HTTP request: takes the engine's chunks, yields bytes.

    Attributes:
        id: the request's, from which those of the engine's requests are made.
        id_header: the name of the header that carries it.
        streaming: answered by server-sent events, and not by one body.
        idle_events: what tells a client that the answer is still being made; empty where the dialect has no such thing.
    """

    id: str
    id_header: bytes
    streaming: bool
    idle_events: bytes

    def add(self, chunks: Iterable[pb.GenerateChunk]) -> None:
        """Take what has come. Raises ApiError when the request failed; what came before that is kept for `events`."""

    def events(self) -> bytes:
        """The events that say what is new since the last call."""

    def last_events(self) -> bytes:
        """What ends the stream, once everything has been told."""

    def error_events(self, error: ApiError) -> bytes:
        """What ends the stream when the request failed in its midst."""

    def body(self) -> bytes:
        """The whole answer as JSON, once the request has ended."""


class Generation(Response):
    """Runs a request on the engine and answers it, whole or as server-sent events. Leaving it aborts the request."""

    def __init__(self, link: EngineLink, traffic: Traffic, answer: Answer, requests: list[pb.GenerateRequest]):
        self._link = link
        self._traffic = traffic
        self._answer = answer
        self._requests = requests
        self._type = b"text/event-stream; charset=utf-8" if answer.streaming else b"application/json"
        self._write = self._write_events if answer.streaming else self._write_whole
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        for request in self._requests:
            label(request, headers)
        try:
            async with self._link.submit(self._requests) as stream, _watch(receive, stream):
                await self._write(stream, send)
        except ClientGoneError:
            self._traffic.disconnects.inc()
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)

    async def _write_whole(self, stream: Stream, send: Send) -> None:
        while not stream.done:
            self._answer.add(await stream.next())
        body = self._answer.body()
        await self._start(send, (b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.body", "body": body})

    async def _write_events(self, stream: Stream, send: Send) -> None:
        self._answer.add(await stream.next())  # a request refused here still has its own status
        await self._start(send, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        try:
            while not stream.done:
                if data := self._answer.events():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                self._answer.add(await self._next(stream, send))
            data = self._answer.events() + self._answer.last_events()
        except ApiError as error:
            data = self._answer.events() + self._answer.error_events(error)
        await send({"type": "http.response.body", "body": data})

    async def _next(self, stream: Stream, send: Send) -> list[pb.GenerateChunk]:
        while self._answer.idle_events:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    return await stream.next()
            await send({"type": "http.response.body", "body": self._answer.idle_events, "more_body": True})
        return await stream.next()

    async def _start(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        common = ((b"content-type", self._type), (self._answer.id_header, self._answer.id.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": [*common, *headers]})


@contextlib.asynccontextmanager
async def _watch(receive: Receive, stream: Stream) -> AsyncIterator[None]:
    """Fails the stream when the client closes its connection."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.fail(ClientGoneError())

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
