"""The routes of models that generate nothing: embeddings, classes, scores, rankings, plain numbers."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from jaxllm.config import ServerConfig
from jaxllm.errors import RequestError
from jaxllm.server.grpc.labels import metadata_of
from jaxllm.server.http.answers import timed
from jaxllm.server.http.errors import ApiError, named_by
from jaxllm.server.http.link import EngineLink, Metadata
from jaxllm.server.http.pooling import answers
from jaxllm.server.http.pooling.reading import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingFields,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from jaxllm.server.http.traffic import Traffic
from jaxllm.server.limits import check_inputs

Write = Callable[[Any, Any], dict[str, Any]]
"""From a request and the engine's answer to what stands in the HTTP answer beside its head."""


class Pooled(Response):
    """Runs a request on the engine and answers it; a client that leaves cancels it."""

    def __init__(
        self, work: Callable[[Metadata], Coroutine[Any, Any, dict[str, Any]]], request_id: str, traffic: Traffic
    ):
        """work: yields the answer's JSON; it is given the metadata of its call."""
        self._work = work
        self._request_id = request_id
        self._traffic = traffic
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        working = asyncio.create_task(self._work(metadata_of(Headers(scope=scope))))
        watching = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self._traffic.disconnects.inc()
                return
            body, status, headers = to_json(working.result(), inf_nan_mode="null"), 200, {}
        except ApiError as error:
            body, status, headers = error.body(), error.status, error.headers
        finally:
            working.cancel()
            watching.cancel()
        headers = {"x-request-id": self._request_id, **headers}
        await Response(body, status, headers, "application/json")(scope, receive, send)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def pooling_router(link: EngineLink, traffic: Traffic, config: ServerConfig) -> APIRouter:
    router = APIRouter()

    async def respond(
        prefix: str, body: PoolingFields, call: Callable[[Any, Metadata], Awaitable[Any]], write: Write
    ) -> Response:
        """prefix: of the answer's id."""
        check_inputs(config, **body.counts)
        model = await link.connect()
        request_id = f"{prefix}-{uuid.uuid4().hex}"
        head = {"id": request_id, "object": "list", "created": int(time.time()), "model": model.name}
        try:
            request = body.to_proto(request_id)
        except UnicodeEncodeError:
            raise  # has a sentence of its own
        except ValueError as error:  # a number its field cannot hold
            raise RequestError(str(error)) from None

        async def work(metadata: Metadata) -> dict[str, Any]:
            with named_by(body):
                answer = await call(request, metadata)
            timings = {"timings": timed(answer.timings)} if body.return_timings else {}
            return head | write(body, answer) | timings

        return Pooled(work, request_id, traffic)

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> Response:
        return await respond("embd", body, link.embed, answers.embeddings)

    @router.post("/v1/score")
    @router.post("/score")
    async def score(body: ScoreRequest) -> Response:
        return await respond("score", body, link.score, answers.scores)

    @router.post("/v1/rerank")
    @router.post("/v2/rerank")
    @router.post("/rerank")
    async def rerank(body: RerankRequest) -> Response:
        return await respond("rerank", body, link.score, answers.ranking)

    @router.post("/v1/classify")
    @router.post("/classify")
    async def classify(body: ClassifyRequest) -> Response:
        return await respond("classify", body, link.classify, answers.classes)

    @router.post("/pooling")
    async def pooling(body: PoolingRequest) -> Response:
        return await respond("pool", body, link.pool, answers.numbers)

    return router
