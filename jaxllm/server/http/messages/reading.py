"""What POST /v1/messages takes, and the chat that it means."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from jaxllm.errors import RequestError
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.dialects import Dialect, chat_request
from jaxllm.server.http.forms import Ignored, Objects, Strict, Unsupported, check_members, read
from jaxllm.server.http.requests import SamplingFields

NAMES = {"max_completion_tokens": "max_tokens", "stop": "stop_sequences", "response_format": "output_config.format",
          "reasoning_effort": "output_config.effort", "thinking_token_budget": "thinking.budget_tokens",
          "template_kwargs": "chat_template_kwargs"}  # fmt: skip
"""What the dialect calls fields of a chat."""
ERROR_PREFIX = "Error: "
"""How a tool's failure is told to the model: chat templates have no other place for it."""


class _Text(Strict):
    type: Literal["text"]
    text: str
    cache_control: Ignored = None  # prefixes are cached without being asked
    citations: Unsupported = None


class _Thinking(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: Ignored = None


class _ToolUse(Strict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: Ignored = None
    caller: Ignored = None
    toolset_name: Unsupported = None


class _ToolResult(Strict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[dict[str, Any]] = ""
    is_error: bool | None = None
    cache_control: Ignored = None
    toolset_name: Unsupported = None


Block = _Text | _Thinking | _ToolUse | _ToolResult
_BLOCKS: dict[str, dict[str, type[Block]]] = {
    "system": {"text": _Text},
    "user": {"text": _Text, "tool_result": _ToolResult},
    "assistant": {"text": _Text, "thinking": _Thinking, "tool_use": _ToolUse},
}
"""What each role's content is made of."""


class Message(Strict):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class Tool(Strict):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Ignored = None  # judged by `_tools`
    strict: bool | None = None
    cache_control: Ignored = None
    eager_input_streaming: Ignored = None  # inputs stream as they are written
    defer_loading: Unsupported = None
    input_examples: Unsupported = None
    allowed_callers: list[Literal["direct"]] | None = None

    def to_chat(self) -> dict[str, Any]:
        function = {
            "name": self.name, "description": self.description, "parameters": self.input_schema, "strict": self.strict
        }  # fmt: skip
        return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


class Thinking(Strict):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        members = {"enabled": ("budget_tokens", "display"), "adaptive": ("display",), "disabled": ()}
        check_members(self, self.type, members, "thinking")
        return self


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: str | None = None
    format: OutputFormat | None = None


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        several = ("disable_parallel_tool_use",)
        members = {"auto": several, "any": several, "tool": ("name", *several), "none": several}
        check_members(self, self.type, members, "tool_choice")
        return self

    def to_chat(self) -> str | dict[str, Any]:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"auto": "auto", "any": "required", "none": "none"}[self.type]


def _messages(value: Any) -> Objects:
    """As messages of a chat."""
    if not isinstance(value, list) or not value:
        raise RequestError("messages: must be a list of messages, not empty", "messages")
    chat: Objects = []
    for i, message in enumerate(value):
        where = f"messages[{i}]"
        chat.extend(_chat_messages(read(Message, message, where), f"{where}.content"))
    return chat


def _chat_messages(message: Message, where: str) -> Iterator[dict[str, Any]]:
    """A message of a chat, or several: results of tools are messages of their own, in their order."""
    blocks = _blocks(message.content, message.role, where)
    if message.role == "assistant":
        calls = [
            {"id": block.id, "type": "function",
             "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}}
            for block in blocks if isinstance(block, _ToolUse)
        ]  # fmt: skip
        thinking = "\n".join(block.thinking for block in blocks if isinstance(block, _Thinking))
        turn = {"role": "assistant", "content": "".join(_texts(blocks))}
        yield turn | ({"reasoning_content": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
        return
    texts: Objects = []
    for i, block in enumerate(blocks):
        if isinstance(block, _ToolResult):
            if texts:
                yield {"role": message.role, "content": texts}
            texts = []
            result = "\n".join(_texts(_blocks(block.content, "system", f"{where}[{i}].content")))
            prefix = ERROR_PREFIX if block.is_error and not result.startswith(ERROR_PREFIX) else ""
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": prefix + result}
        elif isinstance(block, _Text):
            texts.append({"type": "text", "text": block.text})
    if texts or not blocks:
        yield {"role": message.role, "content": texts[0]["text"] if len(texts) == 1 else texts}


def _blocks(content: str | list[dict[str, Any]], role: str, where: str) -> list[Block]:
    if isinstance(content, str):
        return [_Text(type="text", text=content)]
    blocks = []
    for i, block in enumerate(content):
        kind = block.get("type")
        form = _BLOCKS[role].get(kind) if isinstance(kind, str) else None
        if form is None:
            raise RequestError(
                f"{where}[{i}] of type {kind!r} is not supported by this server; it takes {', '.join(_BLOCKS[role])}",
                where.partition("[")[0],
            )
        blocks.append(read(form, block, f"{where}[{i}]"))
    return blocks


def _texts(blocks: list[Block]) -> list[str]:
    return [block.text for block in blocks if isinstance(block, _Text)]


def _system(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(block, dict) for block in value):
        raise RequestError("system: must be a string or a list of text blocks", "system")
    return "\n".join(_texts(_blocks(value, "system", "system")))


def _tools(value: Any) -> list[Tool]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError("tools: must be a list", "tools")
    tools = []
    for i, tool in enumerate(value):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in (None, "custom"):
            raise RequestError(
                f"tools[{i}] of type {kind!r} is not supported by this server; it runs no tools", "tools"
            )
        tools.append(read(Tool, tool, f"tools[{i}]"))
    return tools


Messages = Annotated[Objects, PlainValidator(_messages, json_schema_input_type=list[Message])]
System = Annotated[str | None, PlainValidator(_system, json_schema_input_type=str | Objects | None)]
Tools = Annotated[list[Tool], PlainValidator(_tools, json_schema_input_type=list[Tool] | None)]


class CountTokensRequest(Dialect):
    """POST /v1/messages/count_tokens: what makes the prompt.

    Attributes:
        messages: as those of a chat.
    """

    chat_names = NAMES

    model: str | None = None
    messages: Messages
    system: System = None
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_control: Ignored = None
    speed: Ignored = None
    user_profile_id: Ignored = None
    workspace_id: Ignored = None

    @property
    def prompt_field(self) -> str:
        return "messages"

    def to_chat(self) -> ChatRequest:
        """The same as a chat. An assistant's message at the end is gone on with. Raises ApiError."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        choice, config = self.tool_choice, self.output_config
        fields: dict[str, Any] = {
            "messages": system + self.messages,
            "tools": [tool.to_chat() for tool in self.tools],
            "tool_choice": choice.to_chat() if choice else None,
            "parallel_tool_calls": not choice.disable_parallel_tool_use if choice else None,
            "continue_final_message": True if self._is_begun else None,
            "reasoning_effort": config.effort if config else None,
            "chat_template_kwargs": self._variables(),
        }
        if config and config.format:
            schema = {"name": "output", "schema": config.format.schema_}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.thinking and self.thinking.type == "enabled":
            fields["thinking_token_budget"] = self.thinking.budget_tokens
        return chat_request(self, fields | self._limits())

    def _limits(self) -> dict[str, Any]:
        """Fields of the chat that its prompt does not need."""
        return {}

    @property
    def _is_begun(self) -> bool:
        last = self.messages[-1]
        return last["role"] == "assistant" and "tool_calls" not in last

    def _variables(self) -> dict[str, Any]:
        """Of the template: its switch of thinking, which many have under this name, and the request's own."""
        thinking = {} if self.thinking is None else {"enable_thinking": self.thinking.type != "disabled"}
        return thinking | (self.chat_template_kwargs or {})


class MessagesRequest(SamplingFields, CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    metadata: Ignored = None
    service_tier: Ignored = None
    container: Unsupported = None
    diagnostics: Unsupported = None
    inference_geo: Unsupported = None

    def _limits(self) -> dict[str, Any]:
        stop = [*(self.stop or ()), *(self.stop_sequences or ())]
        return {"max_completion_tokens": self.max_tokens, "stop": stop or None}
