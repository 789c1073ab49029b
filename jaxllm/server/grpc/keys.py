"""Lets calls in that carry an API key."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from jaxllm.server.access import REFUSAL, Keys

OPEN = ("/grpc.health.v1.Health/", "/jaxllm.v1.Control/GetMetrics")
"""What load balancers and Prometheus ask, which have no key: these stay open, as /health and /metrics do."""


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Ends every other call without a key with UNAUTHENTICATED, before anything of it is read."""

    def __init__(self, keys: Keys):
        self._keys = keys
        # Of the kind that reads nothing: a client may stream for ever, or wait for an answer to its first message.
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if handler_call_details.method.startswith(OPEN):
            return await continuation(handler_call_details)
        metadata: dict[str, Any] = dict(handler_call_details.invocation_metadata)
        if self._keys.admit(metadata.get("authorization"), metadata.get("x-api-key")):
            return await continuation(handler_call_details)
        return self._refusal


async def _refuse(_: Any, context: grpc.aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
