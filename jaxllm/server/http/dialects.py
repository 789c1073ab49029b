"""Other dialects of chats: their requests become the ChatRequest that means the same, which alone is read further."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ValidationError

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.errors import from_validation, named_by
from jaxllm.server.http.forms import Body
from jaxllm.server.http.link import EngineLink
from jaxllm.server.http.requests import SamplingFields


class Dialect(Body):
    """A request of another dialect.

    Class attributes:
        chat_names: what it calls fields of a chat.
    """

    chat_names: ClassVar[Mapping[str, str]]

    @property
    def names(self) -> Mapping[str, str]:
        """A form comes by one field or the other."""
        if getattr(self, "structured_outputs", None):
            return self.chat_names
        return {**self.chat_names, "structured_outputs": self.chat_names["response_format"]}


def chat_request(request: Dialect, fields: Mapping[str, Any]) -> ChatRequest:
    """The chat that a request of another dialect means.

    fields: of the chat, beside those of SamplingFields, which the request may have; None leaves one out. Raises
    ApiError, which names the request's own.
    """
    shared = {name: getattr(request, name, None) for name in SamplingFields.model_fields}
    try:
        return ChatRequest(**{name: value for name, value in {**shared, **fields}.items() if value is not None})
    except ValidationError as error:
        raise from_validation(error.errors()).renamed(request.names, request.prompt_field) from None


async def tokenized(link: EngineLink, chat: ChatRequest, body: Body) -> pb.TokenizeResponse:
    """The tokens of the chat that a body means. Raises ApiError."""
    (request,) = chat.prompts()
    with named_by(body):
        return await link.tokenize(pb.TokenizeRequest(model=chat.model or "", chat=request.chat))
