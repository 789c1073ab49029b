"""The front's own counters, and the ASGI middleware that keeps them.

Engine metrics come from the engine (`Control.GetMetrics`); these say what HTTP did with them.
"""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Traffic:
    """Counters of HTTP requests, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "jaxllm_http_requests", "HTTP requests answered.", ("method", "handler", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "jaxllm_http_request_duration_seconds",
            "From a request's arrival to the last byte of its answer.",
            ("handler",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.active = Gauge("jaxllm_http_requests_active", "HTTP requests being answered.", registry=self._registry)
        self.disconnects = Counter(
            "jaxllm_http_client_disconnects", "Clients that left before their answer's end.", registry=self._registry
        )
        self.engine_up = Gauge("jaxllm_http_engine_up", "1 when the engine can be reached.", registry=self._registry)

    def render(self, openmetrics: bool) -> str:
        return (openmetrics_text if openmetrics else generate_latest)(self._registry).decode()


class TrafficMiddleware:
    """Counts every HTTP request."""

    def __init__(self, app: ASGIApp, traffic: Traffic):
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # the client went away before there was one

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begin = time.monotonic()
        self._traffic.active.inc()
        try:
            await self._app(scope, receive, noted_send)
        except Exception:
            status = 500
            raise
        finally:
            # Only routes that exist become label values: a scanner must not grow the registry.
            handler = getattr(scope.get("route"), "path", "unknown")
            self._traffic.active.dec()
            self._traffic.requests.labels(scope["method"], handler, str(status)).inc()
            self._traffic.seconds.labels(handler).observe(time.monotonic() - begin)
