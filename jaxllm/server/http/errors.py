"""Errors in OpenAI's form and in Anthropic's, and how gRPC's status codes become HTTP's."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import grpc
from starlette.responses import Response

from jaxllm.errors import RequestError
from jaxllm.server.http.forms import Body

MESSAGES_PATH = "/v1/messages"
"""Below it Anthropic's form is spoken."""
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """What an HTTP client is told: `{"error": {"message", "type", "param", "code"}}` under `status`, or in Anthropic's
    form `{"type": "error", "error": {"type", "message"}}`.

    `kind` is OpenAI's `type`; it follows from the status unless given. `code` is a stable word for programs.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @classmethod
    def of(cls, error: RequestError) -> Self:
        return cls(400, str(error), param=error.param, code="invalid_value")

    def renamed(self, names: Mapping[str, str], prompt_field: str = "prompt") -> Self:
        """The same of a request that calls some fields otherwise. names: theirs by ours.

        prompt_field: what the prompt is made of; a message may speak of the prompt nevertheless.
        """
        if names:
            self.message = re.sub(
                rf"(?<![\w-])({'|'.join(names)})(?![\w-])", lambda found: names[found[0]], self.message
            )
        if self.param is not None:
            self.param = names.get(self.param, prompt_field if self.param == "prompt" else self.param)
        return self

    @property
    def kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    @property
    def headers(self) -> dict[str, str]:
        """A full queue and an engine that is loading pass: clients that retry should wait a little."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": "1"} if self.status in (429, 503) else {}

    def body(self) -> bytes:
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return _json({"error": error})

    def anthropic_body(self) -> bytes:
        kind = _ANTHROPIC_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return _json({"type": "error", "error": {"type": kind, "message": self.message}})


@contextmanager
def named_by(body: Body) -> Iterator[None]:
    """Errors from within name the fields of the body as it does."""
    try:
        yield
    except ApiError as error:
        raise error.renamed(body.names, body.prompt_field) from None
    except RequestError as error:
        told = ApiError.of(error).renamed(body.names, body.prompt_field)
        raise RequestError(told.message, told.param) from None


def _json(error: dict[str, Any]) -> bytes:
    """Names that a client has sent may hold halves of characters, which only JSON's escapes can say."""
    return json.dumps(error, separators=(",", ":")).encode()


def error_response(error: ApiError, path: str) -> Response:
    """In the form of the dialect that the path belongs to."""
    anthropic = path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/")
    body = error.anthropic_body() if anthropic else error.body()
    return Response(body, error.status, error.headers, "application/json")


_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_value"),
    grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_value"),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "failed_precondition"),
    grpc.StatusCode.NOT_FOUND: (404, "model_not_found"),
    grpc.StatusCode.ALREADY_EXISTS: (409, "already_exists"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "queue_full"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "not_implemented"),
    grpc.StatusCode.UNAVAILABLE: (503, "unavailable"),
    grpc.StatusCode.CANCELLED: (503, "aborted"),
    grpc.StatusCode.ABORTED: (503, "aborted"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "deadline_exceeded"),
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
PARAM_METADATA = "jaxllm-param"
"""Trailing metadata of a failed unary call: the request field at fault."""


def from_status(code: grpc.StatusCode, message: str, param: str | None = None) -> ApiError:
    status, word = _STATUS.get(code, (500, "internal"))
    return ApiError(status, message or code.name, param=param or None, code=word)


def from_number(code: int, message: str, param: str | None = None) -> ApiError:
    """For the Error of a chunk, whose code is a number (google.rpc.Code)."""
    return from_status(_BY_NUMBER.get(code, grpc.StatusCode.UNKNOWN), message, param)


def from_call(error: grpc.aio.AioRpcError) -> ApiError:
    """For a unary call that failed. A deadline there is ours, and means that the engine does not answer."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return unavailable("the engine did not answer in time")
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]  # pairs, at run time
    return from_status(error.code(), error.details() or "", trailing.get(PARAM_METADATA))


def unavailable(why: str) -> ApiError:
    return ApiError(503, f"{why}; try again later", code="unavailable")


def from_validation(errors: Sequence[Mapping[str, Any]], behind: int = 0) -> ApiError:
    """The first of pydantic's faults, as one sentence. behind: steps of its location that name no field."""
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return ApiError.of(cause)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {cause}", code="invalid_json")
    path = ".".join(str(step) for step in first["loc"][behind : behind + 2])
    if first["type"] == "value_error":
        return ApiError(400, f"{path}: {cause}" if path else str(cause), param=path or None, code="invalid_value")
    if not path:
        return ApiError(400, "the body must be a JSON object, sent as application/json", code="invalid_json")
    return ApiError(400, f"{path}: {first['msg'][0].lower()}{first['msg'][1:]}", param=path, code="invalid_value")
