"""What a request's headers, or a call's metadata, say of it: the client's own name for it, and its trace."""

from collections.abc import Mapping

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

MAX_NAME = 256  # characters of a name


def label(request: pb.GenerateRequest, headers: Mapping[str, str]) -> None:
    """Write what the headers say and the request does not."""
    request.client_request_id = clean(request.client_request_id) or clean(headers.get("x-request-id"))
    if not request.traceparent:
        request.traceparent = headers.get("traceparent", "")
        request.tracestate = headers.get("tracestate", "")


def clean(name: str | None) -> str:
    """The name if a log and a header can carry it, else ""."""
    return name if name and len(name) <= MAX_NAME and name.isascii() and name.isprintable() else ""
