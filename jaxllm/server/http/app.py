"""The routes: OpenAI's, vLLM's tokenizer pair, and those that operators watch."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.answers import Answer, ChatAnswer, CompletionAnswer, error_events
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.link import ClientGoneError, EngineLink, Stream
from jaxllm.server.http.requests import CompletionRequest
from jaxllm.server.http.tokenizing import DetokenizeRequest, TokenizeRequest
from jaxllm.server.http.traffic import Traffic, TrafficMiddleware

log = logging.getLogger(__name__)


class Generation(Response):
    """Runs a request on the engine and answers it, whole or as server-sent events. Leaving it aborts the request."""

    def __init__(self, link: EngineLink, traffic: Traffic, answer: Answer[Any], requests: list[pb.GenerateRequest]):
        self._link = link
        self._traffic = traffic
        self._answer = answer
        self._requests = requests
        streaming = answer.request.stream
        self._type = b"text/event-stream; charset=utf-8" if streaming else b"application/json"
        self._write = self._write_events if streaming else self._write_whole
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._link.submit(self._requests) as stream, _watch(receive, stream):
                await self._write(stream, send)
        except ClientGoneError:
            self._traffic.disconnects.inc()
        except ApiError as error:
            await _error_response(error)(scope, receive, send)

    async def _write_whole(self, stream: Stream, send: Send) -> None:
        while not stream.done:
            self._answer.add(await stream.next())
        body = self._answer.body()
        await self._start(send, (b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.body", "body": body})

    async def _write_events(self, stream: Stream, send: Send) -> None:
        choices = self._answer.add(await stream.next())  # a request refused here still has its own status
        await self._start(send, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        try:
            while not stream.done:
                if data := self._answer.events(choices):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                choices = self._answer.add(await stream.next())
            data = self._answer.events(choices) + self._answer.last_events()
        except ApiError as error:
            data = self._answer.events(self._answer.pending()) + error_events(error)
        await send({"type": "http.response.body", "body": data})

    async def _start(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        common = ((b"content-type", self._type), (b"x-request-id", self._answer.head["id"].encode()))
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


def build(target: str) -> FastAPI:
    """The application, in front of the engine at `target` (host:port of its gRPC service)."""
    link = EngineLink(target)
    traffic = Traffic()
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await link.start()
        yield
        await link.close()

    app = FastAPI(title="jaxllm", lifespan=lifespan)
    app.state.link = link
    app.add_middleware(TrafficMiddleware, traffic=traffic)
    _add_error_handlers(app)

    async def generate(answer_type: type[Answer[Any]], body: CompletionRequest | ChatRequest) -> Response:
        model = await link.connect()
        answer = answer_type(body, model.name)
        requests = body.generate_requests(answer.head["id"])
        answer.expect(requests)
        return Generation(link, traffic, answer, requests)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest) -> Response:
        return await generate(CompletionAnswer, body)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest) -> Response:
        return await generate(ChatAnswer, body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [await served_model()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        served = await served_model()
        if served["id"] != name:
            raise ApiError(
                404,
                f"model {name!r} is not served here; this is {served['id']!r}",
                param="model",
                code="model_not_found",
            )
        return served

    async def served_model() -> dict[str, Any]:
        info = await link.model_info()
        return {
            "id": info.name,
            "object": "model",
            "created": started,
            "owned_by": "jaxllm",
            "root": info.path,
            "parent": None,
            "max_model_len": info.max_model_len,
        }

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        answer = await link.tokenize(body.to_proto())
        return {
            "count": len(answer.token_ids),
            "max_model_len": answer.max_model_len,
            "tokens": list(answer.token_ids),
            "token_strs": list(answer.tokens) if body.return_token_strs else None,
        }

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return {"prompt": (await link.detokenize(body.to_proto())).text}

    @app.get("/health")
    async def health() -> Response:
        """200 when a request would be taken now, else 503; within link.HEALTH_SECONDS."""
        return Response(status_code=200 if await link.healthy() else 503)

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return {"version": (await link.server_info()).version}

    @app.get("/metrics")
    async def metrics() -> Response:
        """The engine's metrics and the front's; without an engine the front's alone, which say so."""
        try:
            engine = await link.metrics()
            traffic.engine_up.set(1)
        except ApiError:
            engine = ""
            traffic.engine_up.set(0)
        return PlainTextResponse(engine + traffic.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _error_response(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in OpenAI's form, whoever found it."""

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> Response:
        return _error_response(error)

    @app.exception_handler(RequestError)
    async def on_request_error(_: Request, error: RequestError) -> Response:
        return _error_response(_rejected(error))

    @app.exception_handler(UnicodeEncodeError)
    async def on_half_a_character(_: Request, error: UnicodeEncodeError) -> Response:
        """Out of what writes a request for the engine: JSON's escapes can make halves of characters."""
        found = f"\\u{ord(error.object[error.start]):x}"
        return _error_response(
            ApiError(
                400, f"the request holds {found}, half of a surrogate pair: no text has that", code="invalid_value"
            )
        )

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        return _error_response(_invalid(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(http: Request, error: HTTPException) -> Response:
        message, code = str(error.detail), None
        if error.status_code == 404:
            message, code = f"there is no {http.url.path}; GET /openapi.json lists what there is", "not_found"
        elif error.status_code == 405:
            message, code = f"{http.url.path} does not take {http.method}", "method_not_allowed"
        return _error_response(ApiError(error.status_code, message, code=code))

    @app.exception_handler(Exception)
    async def on_bug(http: Request, error: Exception) -> Response:
        return _error_response(ApiError(500, f"internal error: {type(error).__name__}", code="internal"))


def _rejected(error: RequestError) -> ApiError:
    return ApiError(400, str(error), param=error.param, code="invalid_value")


def _invalid(error: RequestValidationError) -> ApiError:
    """The first fault of a request, as one sentence."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return _rejected(cause)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {cause}", code="invalid_json")
    # loc is ("body", field, index, ...)
    path = ".".join(str(step) for step in first["loc"][1:3])
    if not path:
        return ApiError(400, "the body must be a JSON object, sent as application/json", code="invalid_json")
    return ApiError(400, f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}", param=path, code="invalid_value")
