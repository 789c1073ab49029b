"""GET /openapi.json: what FastAPI derives from the requests' forms, and beside it what it cannot see.

That is the answers, which are written as bytes and not through models, the streams, and the errors, which leave in
a form of our own. `ANSWERS` has the form of each operation's answer; an operation without one is an error, so that
none is forgotten.
"""

from typing import Any, Literal, NotRequired, TypedDict

from fastapi import FastAPI
from pydantic import TypeAdapter

from jaxllm.server.http.errors import MESSAGES_PATH

JSON, EVENTS = "application/json", "text/event-stream"
METRICS = ("text/plain", "application/openmetrics-text")
EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One of the stream's events; the data is JSON, but for a last [DONE] in OpenAI's older endpoints.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
ERRORS = {
    400: "The request is wrong: the message says what, why and what to do.",
    401: "No valid API key.",
    404: "No such model, response or path.",
    405: "The path does not take this method.",
    409: "A request of this id is running.",
    413: "The body is larger than --max-request-bytes.",
    429: "The queue is full: come again after `retry-after` seconds.",
    500: "The request failed in the engine, alone.",
    501: "The engine behind this front is of another version.",
    503: "The model loads, the server drains, or the engine is gone: come again after `retry-after` seconds.",
    504: "The request's deadline passed.",
}


class ErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    error: ErrorDetails


class MessagesErrorDetails(TypedDict):
    type: str
    message: str


class MessagesError(TypedDict):
    """As Anthropic has it."""

    type: Literal["error"]
    error: MessagesErrorDetails


class Timings(TypedDict):
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float
    total_seconds: float


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: NotRequired[int]
    total_tokens: int


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[list[dict[str, Any] | None]]
    timings: NotRequired[Timings]


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]
    timings: NotRequired[Timings]


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class Tokens(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    prompt: str


class Version(TypedDict):
    version: str


class PooledList(TypedDict):
    """Of embeddings, scores, classes or plain numbers: one of data for each input."""

    id: str
    object: str
    created: int
    model: str
    data: list[dict[str, Any]]
    usage: Usage
    timings: NotRequired[Timings]


class Ranking(TypedDict):
    id: str
    model: str
    results: list[dict[str, Any]]
    usage: dict[str, Any]
    timings: NotRequired[Timings]


class Response(TypedDict):
    """As OpenAI's Responses have it."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    timings: NotRequired[Timings]


class DeletedResponse(TypedDict):
    id: str
    object: str
    deleted: Literal[True]


class ResponseItems(TypedDict):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(TypedDict):
    object: NotRequired[str]
    input_tokens: int


class Message(TypedDict):
    """As Anthropic's Messages have it."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    usage: dict[str, Any]
    timings: NotRequired[Timings]


ANSWERS: dict[str, Any] = {
    "post /v1/completions": Completion,
    "post /v1/chat/completions": ChatCompletion,
    "get /v1/models": ModelList,
    "get /v1/models/{name}": Model,
    "post /tokenize": Tokens,
    "post /detokenize": Detokenized,
    "get /version": Version,
    "get /health": None,
    "get /metrics": None,
    "post /v1/embeddings": PooledList,
    "post /score": PooledList,
    "post /v1/score": PooledList,
    "post /classify": PooledList,
    "post /v1/classify": PooledList,
    "post /pooling": PooledList,
    "post /rerank": Ranking,
    "post /v1/rerank": Ranking,
    "post /v2/rerank": Ranking,
    "post /v1/responses": Response,
    "post /v1/responses/input_tokens": InputTokens,
    "get /v1/responses/{response_id}": Response,
    "delete /v1/responses/{response_id}": DeletedResponse,
    "post /v1/responses/{response_id}/cancel": Response,
    "get /v1/responses/{response_id}/input_items": ResponseItems,
    "post /v1/messages": Message,
    "post /v1/messages/count_tokens": InputTokens,
}
"""Method and path to the form of a whole answer; None where there is no JSON."""


def add_document(app: FastAPI, keyed: bool) -> None:
    """Have the application serve the document. keyed: clients need an API key."""
    derive = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(derive(), keyed)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to say so


def _complete(document: dict[str, Any], keyed: bool) -> dict[str, Any]:
    components = document["components"]
    schemas = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own errors, which nobody is sent
        schemas.pop(unused, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = ANSWERS[f"{method} {path}"]
            operation["responses"] = {
                "200": _success(operation, path, answer, schemas),
                **{str(status): _error(path, text, schemas) for status, text in ERRORS.items()},
            }
    if keyed:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"bearer": []}, {"x-api-key": []}]
        for path in ("/health", "/metrics"):
            document["paths"][path]["get"]["security"] = []
    return document


def _success(operation: dict[str, Any], path: str, answer: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if answer is None:
        text = {kind: {"schema": {"type": "string"}} for kind in METRICS} if path == "/metrics" else {}
        return {"description": "As asked.", **({"content": text} if text else {})}
    content: dict[str, Any] = {JSON: {"schema": _schema(answer, schemas)}}
    if _streams(operation, schemas):
        content[EVENTS] = {"schema": EVENT}
    return {"description": "The answer.", "content": content}


def _error(path: str, text: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """/health says no more than its status."""
    if path == "/health":
        text += " Without a body where the engine is not ready."
    form = MessagesError if path.startswith(MESSAGES_PATH) else Error
    return {"description": text, "content": {JSON: {"schema": _schema(form, schemas)}}}


def _schema(form: Any, schemas: dict[str, Any]) -> dict[str, str]:
    """A reference to the form's schema, which is put among the others."""
    schema = TypeAdapter(form).json_schema(ref_template="#/components/schemas/{model}Answer")
    for name, inner in schema.pop("$defs", {}).items():
        schemas[f"{name}Answer"] = inner
    name = f"{form.__name__}Answer"
    schemas[name] = schema
    return {"$ref": f"#/components/schemas/{name}"}


def _streams(operation: dict[str, Any], schemas: dict[str, Any]) -> bool:
    """Whether a request may ask for server-sent events."""
    if any(parameter["name"] == "stream" for parameter in operation.get("parameters", ())):
        return True
    body = operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema", {})
    form = schemas.get(body.get("$ref", "").rpartition("/")[2], {})
    return "stream" in form.get("properties", {})
