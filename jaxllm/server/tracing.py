"""OpenTelemetry traces: a span for each request, under the names that vLLM's users know.

Needs the extra `otel`. Spans are sent in batches, over OTLP's gRPC form, by a thread of the SDK's own. What the
endpoint does not say (headers, certificates, the service's name), OpenTelemetry's own variables do: OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_HEADERS and so on.
"""

import os
import time
from typing import Any

from jaxllm.errors import ConfigError
from jaxllm.server.outcome import Outcome

NANOSECONDS = 1_000_000_000
CLOSE_MS = 2000  # for the last spans to leave


class Tracer:
    """Sends a span for each outcome it is told of. Raises ConfigError without OpenTelemetry."""

    def __init__(self, endpoint: str):
        """endpoint: http://HOST:PORT, or https:// for TLS, of an OTLP collector's gRPC receiver."""
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"otlp_traces_endpoint={endpoint!r}: OpenTelemetry is not installed ({error.name}); "
                "pip install 'jaxllm[otel]', or leave the option out"
            ) from None
        name = os.environ.get("OTEL_SERVICE_NAME", "jaxllm")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("jaxllm")
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER
        self._failed = lambda why: Status(StatusCode.ERROR, why)

    def record(self, outcome: Outcome, model: str) -> None:
        """Send the span of a request that has ended; it joins the trace that the request came with, if any."""
        headers = {"traceparent": outcome.traceparent, "tracestate": outcome.tracestate}
        epoch = time.time() - time.monotonic()
        span = self._tracer.start_span(
            "llm_request",
            context=self._extract({name: value for name, value in headers.items() if value}),
            kind=self._kind,
            attributes=_attributes(outcome, model),
            start_time=int((epoch + outcome.arrival) * NANOSECONDS),
        )
        if outcome.error is not None:
            span.set_status(self._failed(outcome.error))
        span.end(int((epoch + outcome.ended) * NANOSECONDS))

    def close(self) -> None:
        """Send what waits, for a moment at most."""
        self._provider.force_flush(CLOSE_MS)
        self._provider.shutdown()


def _attributes(outcome: Outcome, model: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.request.id": outcome.client_request_id or outcome.request_id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": outcome.finish,
        "gen_ai.usage.prompt_tokens": outcome.num_prompt,
        "gen_ai.usage.cached_tokens": outcome.num_cached,
        "gen_ai.usage.completion_tokens": outcome.num_output,
        "gen_ai.latency.time_in_queue": outcome.queue_seconds,
        "gen_ai.latency.e2e": outcome.ended - outcome.arrival,
    }
    if (params := outcome.params) is not None:
        attributes |= {
            "gen_ai.request.temperature": float(params.temperature),
            "gen_ai.request.top_p": float(params.top_p),
            "gen_ai.request.n": params.n,
            "gen_ai.usage.num_sequences": params.num_samples,
        }
        if params.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
    if outcome.first_token is not None:
        attributes |= {
            "gen_ai.latency.time_to_first_token": outcome.first_token - outcome.arrival,
            "gen_ai.latency.time_in_model_prefill": outcome.prefill_seconds,
            "gen_ai.latency.time_in_model_decode": outcome.decode_seconds,
            "gen_ai.latency.time_in_model_inference": outcome.ended - (outcome.first_scheduled or outcome.arrival),
        }
    return attributes
