"""Conversations as POST /v1/chat/completions takes them, and their translation into the engine's Chat.

The other dialects of chats are translated into this one, so that there is one reading of every parameter.
"""

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from google.protobuf import json_format
from pydantic import Field, PlainValidator, ValidationInfo, model_validator

from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.forms import Body, Ignored, Objects, Strict, Unsupported, check_nesting
from jaxllm.server.http.requests import GenerationRequest
from jaxllm.server.tool_choice import check_tools

MAX_VARIABLE_NESTING = 16
"""Lists and objects in each other that a template's variable may be: protobuf reads few more."""
MAX_VARIABLE_VALUES = 10_000
"""Values that a template's variables may hold: each is a message of its own on the wire."""


def _check_variables(variables: dict[str, Any]) -> None:
    """RequestError for what protobuf could not carry, or only at length."""
    count = 0

    def check(value: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_VARIABLE_VALUES:
            raise RequestError(
                f"chat_template_kwargs: more than {MAX_VARIABLE_VALUES} values; send what is long in messages or "
                "documents, or as a string",
                "chat_template_kwargs",
            )
        if isinstance(value, (dict, list)):
            for inner in value.values() if isinstance(value, dict) else value:
                check(inner)
        else:
            _check_number(value)

    for value in variables.values():
        check_nesting(value, MAX_VARIABLE_NESTING, "chat_template_kwargs")
        check(value)


def _check_number(value: Any) -> None:
    """RequestError for a number that protobuf's, which have 64 bits, cannot hold or write as JSON."""
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:  # so of NaN, too
        raise RequestError(
            "chat_template_kwargs: a number is none that 64 bits can hold; send it as a string",
            "chat_template_kwargs",
        )


def _content(value: Any, info: ValidationInfo) -> str | list[str]:
    """A message's text, or that of each of its parts."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise RequestError("content: must be a string or a list of text parts", "messages")
    return [_part(part, info.data.get("role")) for part in value]


def _part(value: Any, role: str | None) -> str:
    """Its text. An assistant's refusals are what it has said, too."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind != "text" and (kind, role) != ("refusal", "assistant"):
        raise RequestError(f"content part of type {kind!r} is not supported; this model reads text", "messages")
    # Prefixes are cached without being asked.
    if value.keys() - {"prompt_cache_breakpoint"} != {"type", kind} or not isinstance(value[kind], str):
        raise RequestError(f"content part: must be {{'type': {kind!r}, {kind!r}: a string}}", "messages")
    text: str = value[kind]
    return text


def _role(value: Any) -> str:
    if value == "function":
        raise RequestError(
            "role 'function' is of an older kind of calls: send role 'tool', with tool_call_id", "messages"
        )
    roles = ("developer", "system", "user", "assistant", "tool")
    if value not in roles:
        raise RequestError(f"role {value!r}: must be one of {', '.join(roles)}", "messages")
    return "system" if value == "developer" else value  # OpenAI's newer name; chat templates know the older one


def _tools(value: Any) -> list[dict[str, Any]]:
    """As they were sent: templates write out every key, in its order."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError("tools: must be a list", "tools")
    check_tools(value)
    # `strict` asks the server for calls that fit the schema; the model is not told of it.
    return [
        {**tool, "function": {name: field for name, field in tool["function"].items() if name != "strict"}}
        for tool in value
    ]


def _documents(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(document, dict) for document in value):
        raise RequestError("documents: must be a list of objects, each with a text", "documents")
    return value


def _tool_choice(value: Any) -> pb.ToolChoice | None:
    match value:
        case None:
            return None
        case "auto":
            return pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)
        case "none":
            return pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
        case "required":
            return pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
        case {"type": "function", "function": {"name": str(name)}} if name:
            return pb.ToolChoice(function=name)
    raise RequestError(
        f"tool_choice={value!r}: must be 'auto', 'none', 'required' or "
        "{'type': 'function', 'function': {'name': ...}}",
        "tool_choice",
    )


Content = Annotated[str | list[str], PlainValidator(_content, json_schema_input_type=str | Objects | None)]
Role = Annotated[
    str, PlainValidator(_role, json_schema_input_type=Literal["developer", "system", "user", "assistant", "tool"])
]
Tools = Annotated[Objects, PlainValidator(_tools, json_schema_input_type=Objects | None)]
Documents = Annotated[Objects, PlainValidator(_documents, json_schema_input_type=Objects | None)]
ToolChoice = Annotated[
    pb.ToolChoice | None, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any] | None)
]


class FunctionCall(Strict):
    name: str
    arguments: str


class MessageToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Ignored = None  # of a stream's deltas, which some clients send back as they came


class Message(Strict):
    """What a client may send back of an answer (audio, annotations, ...) is accepted where it is empty."""

    role: Role
    content: Content = ""
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name of the same
    refusal: str | None = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _check_refusal(self) -> Self:
        if self.refusal and self.role != "assistant":
            raise RequestError(f"refusal: not of role {self.role!r}; leave it out", "messages")
        return self

    @property
    def _said(self) -> str | list[str]:
        """The content, with the refusal that an assistant's message may have in its place."""
        if not self.refusal:
            return self.content
        if not self.content:
            return self.refusal
        return [*([self.content] if isinstance(self.content, str) else self.content), self.refusal]

    def write(self, wire: pb.ChatMessage) -> None:
        wire.role = self.role
        wire.name = self.name or ""
        wire.reasoning = self.reasoning_content or self.reasoning or ""
        wire.tool_call_id = self.tool_call_id or ""
        said = self._said
        if isinstance(said, str):
            wire.content = said
        else:
            wire.parts.extend(pb.ContentPart(text=text) for text in said)
        for call in self.tool_calls or ():
            wire.tool_calls.add(id=call.id, name=call.function.name, arguments=call.function.arguments)


class ChatFields(Body):
    """A conversation and how its template is rendered."""

    messages: list[Message]
    tools: Tools = Field(default_factory=list)
    documents: Documents = Field(default_factory=list)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def names(self) -> Mapping[str, str]:
        return {**super().names, "template_kwargs": "chat_template_kwargs"}

    @property
    def prompt_field(self) -> str:
        return "messages"

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.messages == []:
            raise RequestError("messages: must hold at least one message", "messages")
        _check_variables(self.chat_template_kwargs or {})
        return self

    def chat(self) -> pb.Chat:
        chat = pb.Chat(continue_final_message=bool(self.continue_final_message))
        for message in self.messages:
            message.write(chat.messages.add())
        chat.tools.extend(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        chat.documents.extend(json.dumps(document, ensure_ascii=False) for document in self.documents)
        variables = dict(self.chat_template_kwargs or {})
        if self.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.add_generation_prompt
        json_format.ParseDict(variables, chat.template_kwargs)
        return chat


class ChatRequest(GenerationRequest, ChatFields):
    """POST /v1/chat/completions."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool = True  # vLLM's: false leaves the reasoning out of the answer
    reasoning_effort: str | None = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    verbosity: Literal["medium"] | None = None  # templates know of none
    web_search_options: Unsupported = None
    moderation: Unsupported = None
    modalities: list[Literal["text"]] | None = None

    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs: only with logprobs=true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ: send one of them", "max_completion_tokens")
        return self

    @property
    def names(self) -> Mapping[str, str]:
        names = dict(super().names)
        if self.top_logprobs is not None:
            names["logprobs"] = "top_logprobs"
        if self.max_tokens is None:
            names["max_tokens"] = "max_completion_tokens"
        return names

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[pb.GenerateRequest]:
        chat = self.chat()
        if self.tool_choice is not None:
            chat.tool_choice.CopyFrom(self.tool_choice)
        if self.parallel_tool_calls is not None:
            chat.parallel_tool_calls = self.parallel_tool_calls
        if self.reasoning_effort is not None:
            chat.template_kwargs["reasoning_effort"] = self.reasoning_effort
        return [pb.GenerateRequest(chat=chat)]
