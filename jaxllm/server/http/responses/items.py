"""The items of a conversation: read as clients send them, listed as they are kept, and rendered as a chat's messages.

Kept items have the form in which they are listed, an id included, so that what was answered can be read again.
"""

import base64
import binascii
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from jaxllm.errors import RequestError
from jaxllm.server.http.forms import Ignored, Strict, Unsupported, read

Item = dict[str, Any]
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


class _Part(Strict):
    type: str
    text: str
    annotations: Ignored = None  # of an answer that is sent back
    logprobs: Ignored = None
    prompt_cache_breakpoint: Ignored = None


class _Message(Strict):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    id: str | None = None
    status: Ignored = None
    phase: Ignored = None  # tells clients which messages to show; templates know no such thing

    def item(self, where: str) -> Item:
        kind = "output_text" if self.role == "assistant" else "input_text"
        extra: Item = {"annotations": [], "logprobs": []} if self.role == "assistant" else {}
        content = [{"type": kind, "text": text, **extra} for text in _texts(self.content, f"{where}.content")]
        return {
            "id": self.id or make_id("msg"), "type": "message", "role": self.role, "content": content,
            "status": "completed",
        }  # fmt: skip


class _Call(Strict):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Ignored = None
    namespace: Unsupported = None
    caller: Unsupported = None
    parsed_arguments: Ignored = None  # which OpenAI's client adds to what it was answered

    def item(self, where: str) -> Item:
        return {
            "id": self.id or make_id("fc"), "type": "function_call", "call_id": self.call_id, "name": self.name,
            "arguments": self.arguments, "status": "completed",
        }  # fmt: skip


class _CallOutput(Strict):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[dict[str, Any]]
    id: str | None = None
    status: Ignored = None
    name: Ignored = None
    namespace: Unsupported = None
    caller: Unsupported = None

    def item(self, where: str) -> Item:
        output: str | list[Item] = self.output
        if not isinstance(output, str):
            output = [{"type": "input_text", "text": text} for text in _texts(output, f"{where}.output")]
        return {
            "id": self.id or make_id("fco"), "type": "function_call_output", "call_id": self.call_id, "output": output,
            "status": "completed",
        }  # fmt: skip


class _Reasoning(Strict):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    status: Ignored = None

    def item(self, where: str) -> Item:
        texts = _texts(self.content or [], f"{where}.content") or _texts(self.summary or [], f"{where}.summary")
        if not texts and self.encrypted_content:
            texts = [unwrap(self.encrypted_content, f"{where}.encrypted_content")]
        return reasoning(self.id or make_id("rs"), "\n".join(texts))


class _Reference(Strict):
    """An item of an earlier answer, by its id; the routes put the item in its place."""

    type: Literal["item_reference"]
    id: str

    def item(self, where: str) -> Item:
        return {"type": self.type, "id": self.id}


_Form = _Message | _Call | _CallOutput | _Reasoning | _Reference
_FORMS: dict[str, type[_Form]] = {
    "message": _Message,
    "function_call": _Call,
    "function_call_output": _CallOutput,
    "reasoning": _Reasoning,
    "item_reference": _Reference,
}


def read_input(value: Any) -> list[Item]:
    """A request's `input` as kept items. Raises RequestError, which names what this server does not take."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise RequestError("input: must be a string or a list of items", "input")
    items = []
    for i, item in enumerate(value):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        form = _FORMS.get(kind) if isinstance(kind, str) else None
        if form is None:
            raise RequestError(
                f"input[{i}] of type {kind!r} is not supported by this server; it takes {', '.join(_FORMS)}", "input"
            )
        items.append(read(form, item, f"input[{i}]").item(f"input[{i}]"))
    return items


def reasoning(item_id: str, text: str, status: str = "completed") -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def wrap(text: str) -> str:
    """Reasoning as the `encrypted_content` of clients that keep nothing else of it. It hides nothing from them."""
    return base64.b64encode(text.encode()).decode()


def unwrap(wrapped: str, where: str) -> str:
    try:
        return base64.b64decode(wrapped, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where}: was not made by this server; send the reasoning's content", "input") from error


def to_messages(items: Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The messages of a chat.

    What an assistant's turn is made of (reasoning, a message, calls) becomes one message where it comes in that order.
    Instructions join the system's messages at the beginning: most templates know one such message alone.
    """
    messages: list[dict[str, Any]] = []
    system = [instructions] if instructions else []
    turn: dict[str, Any] = {}

    def assistant(*closed_by: str) -> dict[str, Any]:
        """The assistant's turn to add to: a new one if it has these parts already."""
        nonlocal turn
        if not turn or any(part in turn for part in closed_by):
            turn = {"role": "assistant"}
            messages.append(turn)
        return turn

    for item in items:
        match item:
            case {"type": "reasoning"}:
                text = "\n".join(part["text"] for part in item["content"])
                assistant("reasoning_content", "content", "tool_calls")["reasoning_content"] = text
            case {"type": "message", "role": "assistant"}:
                assistant("content", "tool_calls")["content"] = [_text(part) for part in item["content"]]
            case {"type": "function_call"}:
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                assistant().setdefault("tool_calls", []).append(call)
            case {"type": "function_call_output", "output": output}:
                turn = {}
                content = output if isinstance(output, str) else [_text(part) for part in output]
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
            case {"role": "system" | "developer"} if not messages:
                system.extend(part["text"] for part in item["content"])
            case _:
                turn = {}
                content = [_text(part) for part in item["content"]]
                if len(content) == 1:
                    content = content[0]["text"]
                messages.append({"role": item["role"], "content": content})
    if system:
        messages.insert(0, {"role": "system", "content": "\n\n".join(system)})
    return messages


def _texts(content: str | list[dict[str, Any]], where: str) -> list[str]:
    if isinstance(content, str):
        return [content]
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type")
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif kind in _TEXTS:
            texts.append(read(_Part, part, f"{where}[{i}]").text)
        else:
            raise RequestError(f"{where}[{i}] of type {kind!r} is not supported; this model reads text", "input")
    return texts


def _text(part: Item) -> dict[str, str]:
    return {"type": "text", "text": part["text"]}


def make_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
