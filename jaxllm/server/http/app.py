"""The routes: OpenAI's, vLLM's tokenizer pair, and those that operators watch."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from jaxllm.config import ServerConfig
from jaxllm.errors import RequestError
from jaxllm.server.access import Keys
from jaxllm.server.http.answers import ChatAnswer, CompletionAnswer
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.document import add_document
from jaxllm.server.http.errors import ApiError, error_response, from_validation, named_by
from jaxllm.server.http.gate import Gate
from jaxllm.server.http.generation import Generation
from jaxllm.server.http.link import EngineLink
from jaxllm.server.http.messages.routes import messages_router
from jaxllm.server.http.pooling.routes import pooling_router
from jaxllm.server.http.requests import CompletionRequest
from jaxllm.server.http.responses.routes import Responses
from jaxllm.server.http.responses.store import Store
from jaxllm.server.http.tokenizing import DetokenizeRequest, TokenizeRequest
from jaxllm.server.http.traffic import Traffic, TrafficMiddleware
from jaxllm.server.limits import check_inputs, check_queue

log = logging.getLogger(__name__)

OPENMETRICS = "application/openmetrics-text"


def build(target: str, config: ServerConfig | None = None) -> FastAPI:
    """The application, in front of the engine at `target` (host:port of its gRPC service, or unix:PATH).

    config: who may call, from where, how much one request may ask for, and what is kept of it.
    """
    config = config or ServerConfig()
    link = EngineLink(target)
    traffic = Traffic()
    responses = Responses(link, traffic, Store(config.max_stored_responses, config.max_stored_response_bytes))
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await link.start()
        try:
            yield
        finally:
            await responses.close()
            await link.close()

    app = FastAPI(title="jaxllm", lifespan=lifespan)
    app.state.link = link
    keys = Keys.of(config)
    app.add_middleware(Gate, keys=keys, max_request_bytes=config.max_request_bytes)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=("x-request-id", "retry-after"),
        )
    app.add_middleware(TrafficMiddleware, traffic=traffic)
    app.include_router(responses.router)
    app.include_router(messages_router(link, traffic))
    app.include_router(pooling_router(link, traffic, config))
    _add_error_handlers(app)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest) -> Response:
        check_inputs(config, prompt=len(body.prompt))
        served = await link.connect()
        check_queue(served.max_requests, prompt=len(body.prompt))
        answer = CompletionAnswer(body.with_default(served.default_max_tokens), served.name)
        return Generation(link, traffic, answer, answer.requests)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest) -> Response:
        answer = ChatAnswer(body, (await link.connect()).name)
        return Generation(link, traffic, answer, answer.requests)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": await served_models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        served = await served_models()
        for card in served:
            if card["id"] == name:
                return card
        raise ApiError(
            404,
            f"model {name!r} is not served here; this is {served[0]['id']!r}",
            param="model",
            code="model_not_found",
        )

    async def served_models() -> list[dict[str, Any]]:
        """One model, under each of its names."""
        info = await link.model_info()
        card = {
            "object": "model",
            "created": started,
            "owned_by": "jaxllm",
            "root": info.path,
            "parent": None,
            "max_model_len": info.max_model_len,
        }
        return [{"id": name, **card} for name in (info.name, *info.aliases)]

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        with named_by(body):
            answer = await link.tokenize(body.to_proto())
        return {
            "count": len(answer.token_ids),
            "max_model_len": answer.max_model_len,
            "tokens": list(answer.token_ids),
            "token_strs": list(answer.tokens) if body.return_token_strs else None,
        }

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        with named_by(body):
            return {"prompt": (await link.detokenize(body.to_proto())).text}

    @app.get("/health")
    async def health() -> Response:
        """200 when a request would be taken now, else 503; within link.HEALTH_SECONDS."""
        return Response(status_code=200 if await link.healthy() else 503)

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return {"version": (await link.server_info()).version}

    @app.get("/metrics")
    async def metrics(http: Request) -> Response:
        """The engine's metrics and the front's; without an engine the front's alone, which say so.

        In OpenMetrics' form for those who say that they take it, as Prometheus does.
        """
        openmetrics = OPENMETRICS in http.headers.get("accept", "")
        try:
            engine = (await link.metrics(openmetrics)).removesuffix("# EOF\n")
            traffic.engine_up.set(1)
        except ApiError:
            engine = ""
            traffic.engine_up.set(0)
        form = f"{OPENMETRICS}; version=1.0.0" if openmetrics else "text/plain; version=0.0.4"
        return Response(engine + traffic.render(openmetrics), media_type=f"{form}; charset=utf-8")

    add_document(app, keyed=bool(keys))
    return app


def _methods(app: FastAPI, http: Request) -> list[str]:
    """Those that the request's path takes: each has a route of its own, of which one is at hand."""
    path = getattr(http.scope.get("route"), "path_format", http.url.path)
    return sorted(method.upper() for method in app.openapi()["paths"].get(path, ()))


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in the form of its path's dialect, whoever found it."""

    @app.exception_handler(ApiError)
    async def on_api_error(http: Request, error: ApiError) -> Response:
        return error_response(error, http.url.path)

    @app.exception_handler(RequestError)
    async def on_request_error(http: Request, error: RequestError) -> Response:
        return error_response(ApiError.of(error), http.url.path)

    @app.exception_handler(UnicodeEncodeError)
    async def on_half_a_character(http: Request, error: UnicodeEncodeError) -> Response:
        """Out of what writes a request for the engine: JSON's escapes can make halves of characters."""
        found = f"\\u{ord(error.object[error.start]):x}"
        message = f"the request holds {found}, half of a surrogate pair: no text has that"
        return error_response(ApiError(400, message, code="invalid_value"), http.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(http: Request, error: RequestValidationError) -> Response:
        return error_response(from_validation(error.errors(), behind=1), http.url.path)  # behind "body"

    @app.exception_handler(HTTPException)
    async def on_http_error(http: Request, error: HTTPException) -> Response:
        message, code, headers = str(error.detail), None, {}
        if error.status_code == 404:
            message, code = f"there is no {http.url.path}; GET /openapi.json lists what there is", "not_found"
        elif error.status_code == 405:
            message, code = f"{http.url.path} does not take {http.method}", "method_not_allowed"
            headers = {"allow": ", ".join(_methods(app, http))}
        elif error.status_code == 413:
            code = "request_too_large"
        response = error_response(ApiError(error.status_code, message, code=code), http.url.path)
        response.headers.update(headers)
        return response

    @app.exception_handler(Exception)
    async def on_bug(http: Request, error: Exception) -> Response:
        return error_response(ApiError(500, f"internal error: {type(error).__name__}", code="internal"), http.url.path)
