"""What POST /v1/responses takes, and the chat that it means."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from jaxllm.errors import RequestError
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.dialects import Dialect, chat_request
from jaxllm.server.http.forms import Ignored, Objects, Strict, Unsupported, check_members, read
from jaxllm.server.http.requests import SamplingFields
from jaxllm.server.http.responses.items import Item, read_input, to_messages

LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
MAX_METADATA, MAX_KEY, MAX_VALUE = 16, 64, 512
"""OpenAI's bounds of metadata: pairs, and characters of each key and value."""
NAMES = {"max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens", "messages": "input",
          "reasoning_effort": "reasoning.effort", "response_format": "text.format", "logprobs": "top_logprobs",
          "template_kwargs": "chat_template_kwargs"}  # fmt: skip
"""What the dialect calls fields of a chat."""


class FunctionTool(Strict):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: Unsupported = None
    defer_loading: Unsupported = None
    allowed_callers: Unsupported = None

    def to_chat(self) -> dict[str, Any]:
        function = {name: getattr(self, name) for name in ("name", "description", "parameters", "strict")}
        given = {name: value for name, value in function.items() if value is not None}
        return {"type": "function", "function": given}


class Reasoning(Strict):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None  # the older name of the same
    context: str | None = None
    mode: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("summary", "generate_summary", "context", "mode"):
            if (value := getattr(self, name)) not in (None, "auto", "standard" if name == "mode" else None):
                raise RequestError(
                    f"reasoning.{name}={value!r} is not supported: answers hold the reasoning itself",
                    "reasoning",
                )
        return self


class Format(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        schema = ("name", "description", "schema_", "strict")
        check_members(self, self.type, {"text": (), "json_object": (), "json_schema": schema}, "text")
        return self

    def to_chat(self) -> dict[str, Any] | None:
        """As `response_format` has it."""
        if self.type == "text":
            return None
        named = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": self.strict}
        given = {name: value for name, value in named.items() if value is not None}
        return {"type": self.type} | ({"json_schema": given} if given else {})


class Text(Strict):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None  # templates know of none


class ResponseStreamOptions(Strict):
    include_obfuscation: Ignored = None  # pads events against eavesdropping on their sizes; we have no such pads


def _tools(value: Any) -> list[FunctionTool]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError("tools: must be a list", "tools")
    tools = []
    for i, tool in enumerate(value):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise RequestError(
                f"tools[{i}] of type {kind!r} is not supported by this server; it knows 'function'", "tools"
            )
        tools.append(read(FunctionTool, tool, f"tools[{i}]"))
    return tools


def _tool_choice(value: Any) -> str | dict[str, Any]:
    match value:
        case None:
            return "auto"
        case "auto" | "none" | "required" | {"type": "function", "name": str()}:
            return value
        case {"type": "allowed_tools", "mode": "auto" | "required", "tools": [*allowed]} if all(
            isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("name"), str)
            for tool in allowed
        ):
            return value
        case {"type": kind} if kind not in ("function", "allowed_tools"):
            raise RequestError(f"tool_choice of type {kind!r} is not supported by this server", "tool_choice")
    raise RequestError(
        f"tool_choice={value!r}: must be 'auto', 'none', 'required', {{'type': 'function', 'name': ...}} or "
        "{'type': 'allowed_tools', 'mode': ..., 'tools': [{'type': 'function', 'name': ...}, ...]}",
        "tool_choice",
    )


Input = Annotated[list[Item], PlainValidator(read_input, json_schema_input_type=str | Objects)]
Tools = Annotated[list[FunctionTool], PlainValidator(_tools, json_schema_input_type=Objects | None)]
ToolChoice = Annotated[
    str | dict[str, Any], PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any] | None)
]


class Conversation(Dialect):
    """What makes a response's prompt.

    Attributes:
        input: as kept items.
    """

    chat_names = NAMES

    model: str | None = None
    input: Input = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    conversation: Unsupported = None

    @property
    def prompt_field(self) -> str:
        return "input"

    def to_chat(self, history: Sequence[Item]) -> ChatRequest:
        """The same as a chat. history: the items before the input. Raises RequestError or ApiError."""
        messages = to_messages([*history, *self.input], self.instructions)
        if not messages:
            raise RequestError("input: must hold at least one item", "input")
        tools, choice = self._choice()
        fields = {
            "messages": messages,
            "tools": [tool.to_chat() for tool in tools],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": self.text.format.to_chat() if self.text and self.text.format else None,
            "chat_template_kwargs": self.chat_template_kwargs,
        }
        return chat_request(self, fields | self._limits())

    def _limits(self) -> dict[str, Any]:
        """Fields of the chat that its prompt does not need."""
        return {}

    def _choice(self) -> tuple[list[FunctionTool], str | dict[str, Any]]:
        """The tools that may be called, and the chat's choice among them."""
        match self.tool_choice:
            case {"type": "function", "name": name}:
                return self.tools, {"type": "function", "function": {"name": name}}
            case {"type": "allowed_tools", "mode": str(mode), "tools": list(allowed)}:
                names = [tool["name"] for tool in allowed]
                if unknown := set(names) - {tool.name for tool in self.tools}:
                    raise RequestError(
                        f"tool_choice allows {min(unknown)!r}, which is none of the tools", "tool_choice"
                    )
                return [tool for tool in self.tools if tool.name in names], mode
            case str(mode):
                return self.tools, mode
        raise AssertionError(self.tool_choice)


class ResponsesRequest(SamplingFields, Conversation):
    """POST /v1/responses."""

    input: Input
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    background: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    prompt: Unsupported = None
    moderation: Unsupported = None
    context_management: Unsupported = None

    max_tool_calls: Ignored = None  # counts calls of built-in tools, of which there are none
    user: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.include or ():
            if name not in (LOGPROBS, ENCRYPTED):
                raise RequestError(f"include: {name!r} is not supported; known: {LOGPROBS}, {ENCRYPTED}", "include")
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise RequestError(f"top_logprobs: only with include=[{LOGPROBS!r}]", "top_logprobs")
        if self.background and self.store is False:
            raise RequestError("background: the answer has to be kept for you to get it: not with store=false", "store")
        pairs = (self.metadata or {}).items()
        if len(pairs) > MAX_METADATA or any(len(key) > MAX_KEY or len(value) > MAX_VALUE for key, value in pairs):
            raise RequestError(
                f"metadata: {MAX_METADATA} pairs at most, keys of {MAX_KEY} and values of {MAX_VALUE} characters",
                "metadata",
            )
        return self

    @property
    def stored(self) -> bool:
        return self.store is not False

    def _limits(self) -> dict[str, Any]:
        wanted = LOGPROBS in (self.include or ())
        return {
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": wanted,
            "top_logprobs": self.top_logprobs if wanted else None,
        }


class InputTokensRequest(Conversation):
    """POST /v1/responses/input_tokens."""

    personality: Unsupported = None
