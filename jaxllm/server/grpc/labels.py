"""What a request's headers, or a call's metadata, say of it: the client's own name for it, and its trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

MAX_NAME = 256  # characters of a name
MAX_TRACE = 512  # characters of a trace's header, as W3C Trace Context would have carried at least
NAME = "x-request-id"
TRACE = ("traceparent", "tracestate")


def label(request: pb.GenerateRequest, headers: Mapping[str, str]) -> None:
    """Write what the headers say and the request does not."""
    request.client_request_id = clean(request.client_request_id) or clean(headers.get(NAME))
    if not request.traceparent:
        request.traceparent = headers.get("traceparent", "")
        request.tracestate = headers.get("tracestate", "")


@dataclass(frozen=True)
class Caller:
    """What a call's metadata say where its request has no room for it. seconds: until its deadline, if it has one."""

    client_request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    seconds: float | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str], seconds: float | None) -> Self:
        parent, state = (metadata.get(name, "") for name in TRACE)
        return cls(clean(metadata.get(NAME)), parent, state, seconds)


def metadata_of(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that say the same as a request's headers."""
    named = ((NAME, clean(headers.get(NAME))), *((name, clean(headers.get(name), MAX_TRACE)) for name in TRACE))
    return tuple((name, value) for name, value in named if value)


def clean(name: str | None, longest: int = MAX_NAME) -> str:
    """The name if a log and a header can carry it, else ""."""
    return name if name and len(name) <= longest and name.isascii() and name.isprintable() else ""
