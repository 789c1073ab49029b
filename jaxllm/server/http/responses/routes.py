"""/v1/responses: made, kept, followed, cancelled and forgotten."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from jaxllm.server.grpc.labels import label
from jaxllm.server.http.dialects import tokenized
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.generation import Generation
from jaxllm.server.http.link import EngineLink
from jaxllm.server.http.responses.background import BackgroundRun
from jaxllm.server.http.responses.events import ResponseAnswer
from jaxllm.server.http.responses.items import Item
from jaxllm.server.http.responses.reading import Conversation, InputTokensRequest, ResponsesRequest
from jaxllm.server.http.responses.store import Kept, Store
from jaxllm.server.http.responses.truncation import fitting
from jaxllm.server.http.traffic import Traffic

MAX_LISTED = 100
"""Input items of one page."""


async def _caller(http: Request) -> bytes:
    """Whose key the request shows, as the gate found it."""
    caller: bytes = http.state.caller
    return caller


Caller = Annotated[bytes, Depends(_caller)]


class KeptGeneration(Generation):
    """Makes a response that ends with its connection and is kept from its first chunk on."""

    def __init__(self, store: Store, answer: ResponseAnswer, caller: bytes, *arguments: Any):
        super().__init__(*arguments)
        self._store = store
        self._response = answer
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._response.cancel()  # unless it has ended: its client left
            self._store.settle(self._response)

    async def _start(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        self._store.put(self._response, self._caller)
        await super()._start(send, *headers)


class Responses:
    """The endpoints, and what they keep."""

    def __init__(self, link: EngineLink, traffic: Traffic, store: Store):
        self.router = APIRouter(prefix="/v1/responses")
        self._link = link
        self._traffic = traffic
        self._store = store
        self._running: set[BackgroundRun] = set()
        add = self.router.add_api_route
        add("", self.create, methods=["POST"])
        add("/input_tokens", self.input_tokens, methods=["POST"])
        add("/{response_id}", self.retrieve, methods=["GET"])
        add("/{response_id}", self.delete, methods=["DELETE"])
        add("/{response_id}/cancel", self.cancel, methods=["POST"])
        add("/{response_id}/input_items", self.input_items, methods=["GET"])

    async def create(self, body: ResponsesRequest, http: Request, caller: Caller) -> Response:
        model = await self._link.connect()
        body, history = self._resolved(body, caller), self._history(body, caller)
        chat = await fitting(self._link, body, history) if body.truncation == "auto" else body.to_chat(history)
        answer = ResponseAnswer(body, model.name, history)
        requests = chat.generate_requests(answer.id)
        if body.background:
            for request in requests:
                label(request, http.headers)
            run = BackgroundRun(self._link, self._store, answer, requests)
            self._store.put(answer, caller, run)
            self._running.add(run)
            run.start().add_done_callback(lambda _: self._running.discard(run))
            return _followed(run) if body.stream else _json(answer.view())
        if body.stored:
            return KeptGeneration(self._store, answer, caller, self._link, self._traffic, answer, requests)
        return Generation(self._link, self._traffic, answer, requests)

    async def retrieve(
        self, response_id: str, caller: Caller, stream: bool = False, starting_after: Annotated[int, Query(ge=-1)] = -1
    ) -> Response:
        kept = self._store.get(response_id, caller)
        if not stream:
            return _json(kept.answer.view())
        if kept.run is None or not kept.answer.streaming:
            raise ApiError(
                400,
                f"the events of response {response_id!r} are not kept: create it with background=true and stream=true, "
                "or retrieve it without stream",
                param="stream",
                code="invalid_value",
            )
        return _followed(kept.run, starting_after)

    async def delete(self, response_id: str, caller: Caller) -> Response:
        await self._end(self._store.delete(response_id, caller))
        return _json({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, response_id: str, caller: Caller) -> Response:
        kept = self._store.get(response_id, caller)
        if kept.run is None:
            raise ApiError(
                400,
                f"response {response_id!r} was not created with background=true: it ends when its connection is closed",
                param="response_id",
                code="invalid_value",
            )
        await self._end(kept)
        return _json(kept.answer.view())

    async def input_items(
        self,
        response_id: str,
        caller: Caller,
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        items = list(self._store.get(response_id, caller).answer.input)
        if order == "desc":
            items.reverse()
        if after is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise ApiError(
                    400, f"after={after!r} is none of the response's input items", param="after", code="invalid_value"
                )
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        return _json({
            "object": "list", "data": page, "has_more": len(items) > limit,
            "first_id": page[0]["id"] if page else "", "last_id": page[-1]["id"] if page else "",
        })  # fmt: skip

    async def input_tokens(self, body: InputTokensRequest, caller: Caller) -> Response:
        chat = self._resolved(body, caller).to_chat(self._history(body, caller))
        counted = await tokenized(self._link, chat, body)
        return _json({"object": "response.input_tokens", "input_tokens": len(counted.token_ids)})

    async def close(self) -> None:
        """End what runs in the background."""
        await asyncio.gather(*(run.cancel() for run in self._running))

    def _resolved[C: Conversation](self, request: C, caller: bytes) -> C:
        """The request with the items that its input refers to."""
        return request.model_copy(
            update={
                "input": [
                    self._store.item(item["id"], caller) if item["type"] == "item_reference" else item
                    for item in request.input
                ]
            }
        )

    def _history(self, request: Conversation, caller: bytes) -> list[Item]:
        """The items of the response that this one goes on from, and those before."""
        if request.previous_response_id is None:
            return []
        name, code = "previous_response_id", "previous_response_not_found"
        try:
            previous = self._store.get(request.previous_response_id, caller).answer
        except ApiError as error:
            raise ApiError(400, f"{name}: {error.message}", param=name, code=code) from None
        if previous.status not in ("completed", "incomplete"):
            raise ApiError(400, f"{name}: {previous.id!r} is {previous.status}: it has no answer to go on from",
                           param=name, code="invalid_value")  # fmt: skip
        return [*previous.input, *previous.output]

    async def _end(self, kept: Kept) -> None:
        if kept.run is not None and not kept.answer.ended:
            await kept.run.cancel()


def _followed(run: BackgroundRun, after: int = -1) -> Response:
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(run.follow(after), media_type="text/event-stream", headers=headers)


def _json(value: dict[str, Any]) -> Response:
    return Response(to_json(value), media_type="application/json")
