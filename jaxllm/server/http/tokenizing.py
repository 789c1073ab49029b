"""What POST /tokenize and POST /detokenize take."""

from collections.abc import Mapping
from typing import Self

from pydantic import model_validator

from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.chats import ChatFields, Message
from jaxllm.server.http.forms import Body, check_token_ids

_OF_MESSAGES = {
    "tools": [],
    "documents": [],
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template_kwargs": {},
}
"""Fields of the form with messages alone, and what says nothing in the other."""


class TokenizeRequest(ChatFields):
    """POST /tokenize, with a prompt or with messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None  # type: ignore[assignment]  # optional here alone
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @property
    def prompt_field(self) -> str:
        return "prompt" if self.messages is None else "messages"

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("send either prompt or messages", "prompt")
        if self.messages is not None:
            if self.add_special_tokens:
                raise RequestError(
                    "add_special_tokens: the chat template writes those of messages itself; leave it out",
                    "add_special_tokens",
                )
            return self
        for name, neutral in _OF_MESSAGES.items():
            if getattr(self, name) not in (None, neutral):
                raise RequestError(f"{name}: only with messages; send them, or leave it out", name)
        return self

    def to_proto(self) -> pb.TokenizeRequest:
        if self.prompt is None:
            return pb.TokenizeRequest(model=self.model or "", chat=self.chat())
        return pb.TokenizeRequest(model=self.model or "", text=self.prompt, add_special_tokens=self.add_special_tokens)


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]

    @property
    def names(self) -> Mapping[str, str]:
        return {"token_ids": "tokens"}

    def to_proto(self) -> pb.DetokenizeRequest:
        return pb.DetokenizeRequest(model=self.model or "", token_ids=check_token_ids(self.tokens, "tokens"))
