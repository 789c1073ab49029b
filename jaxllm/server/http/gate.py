"""What every HTTP request passes first: it gets a name, may have to show a key, and may not be too large.

Whose key it is stands in the request's `state.caller` from there on, as Keys.identify tells it.

The name is the client's `X-Request-Id`, else the answer's own id, or one made here; every answer bears it. Keys come
as `Authorization: Bearer` or `x-api-key`.
"""

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxllm.server.access import REFUSAL, Keys
from jaxllm.server.grpc.labels import clean
from jaxllm.server.http.errors import ApiError, error_response

OPEN = frozenset(("/health", "/metrics", "/openapi.json"))
"""What load balancers and Prometheus ask, which have no key, and what says that others need one."""


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: Keys, max_request_bytes: int):
        self._app = app
        self._keys = keys
        self._max_request_bytes = max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = clean(headers.get("x-request-id"))
        body_bytes = 0

        async def counted_receive() -> Message:
            nonlocal body_bytes
            message = await receive()
            body_bytes += len(message.get("body", b""))
            if body_bytes > self._max_request_bytes:
                raise HTTPException(413, self._too_large)
            return message

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = given or answer.get("x-request-id") or uuid.uuid4().hex
            await send(message)

        caller = self._keys.identify(headers.get("authorization"), headers.get("x-api-key"))
        scope.setdefault("state", {})["caller"] = caller
        if refusal := self._refusal(scope["path"], headers, known=caller is not None):
            await error_response(refusal, scope["path"])(scope, receive, named_send)
        else:
            await self._app(scope, counted_receive, named_send)

    def _refusal(self, path: str, headers: Headers, known: bool) -> ApiError | None:
        """Why nothing of the request is read, or None. known: it shows a key."""
        if path not in OPEN and not known:
            return ApiError(401, REFUSAL, code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_request_bytes:
            return ApiError(413, self._too_large, code="request_too_large")
        return None

    @property
    def _too_large(self) -> str:
        return f"the request's body is larger than {self._max_request_bytes} bytes (--max-request-bytes)"
