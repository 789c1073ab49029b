"""Other dialects of chats: their requests become the ChatRequest that means the same, which alone is read further."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.errors import from_validation
from jaxllm.server.http.forms import Strict
from jaxllm.server.http.requests import SamplingFields


def chat_request(request: Strict, fields: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """The chat that a request of another dialect means.

    fields: of the chat, beside those of SamplingFields, which the request may have; None leaves one out.
    names: what the dialect calls some of them, for the errors. Raises ApiError.
    """
    shared = {name: getattr(request, name, None) for name in SamplingFields.model_fields}
    try:
        return ChatRequest(**{name: value for name, value in {**shared, **fields}.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error.errors()).renamed(names) from None


def tokenize_request(chat: ChatRequest) -> pb.TokenizeRequest:
    """What counts the tokens of the chat's prompt."""
    (request,) = chat.prompts()
    return pb.TokenizeRequest(model=chat.model or "", chat=request.chat)
