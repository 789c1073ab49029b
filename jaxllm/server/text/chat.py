"""Chat templates: messages become the prompt that the model was trained to answer."""

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.meta

from jaxllm.errors import ConfigError, RequestError

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."} and whatever more the template reads (name, tool_calls, ...). The content may be a
list of {"type": "text", "text": "..."}, too."""

RESERVED = frozenset((
    "chat_template", "conversation", "conversations", "max_length", "messages", "padding",
    "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "self", "tokenize",
    "tokenizer_kwargs", "truncation",
))  # fmt: skip
"""Parameters of transformers' and Jinja's own that no request may reach: a template of the client's is a program of the
client's. Jinja has no variable `self`."""

_SYNTAX = jinja2.Environment(extensions=["jinja2.ext.do", "jinja2.ext.loopcontrols"])
_PROBE = "Xq7 probe"


def read_template(path: str) -> str:
    """A Jinja file that replaces the checkpoint's own template."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template={path!r}: cannot be read ({error}); name a Jinja file in UTF-8") from error


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    /,
    *,
    continue_final_message: bool = False,
    add_generation_prompt: bool | None = None,
    **variables: Any,
) -> str:
    """The prompt's text.

    tokenizer: a transformers tokenizer with its chat template; it renders in a sandbox.
    continue_final_message: the last message is the beginning of the answer, left open for the model to go on.
    add_generation_prompt: open the assistant's turn; by default unless continue_final_message.
    variables: extra variables of the template (tools, documents, enable_thinking, reasoning_effort, ...).

    Raises RequestError when there is no template or it refuses the messages.
    """
    if not tokenizer.chat_template:
        raise RequestError(
            "this model has no chat template: send a plain prompt, or start the server with --chat-template FILE",
            "messages",
        )
    if not messages:
        raise RequestError("messages is empty: at least one message is needed", "messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{i}] needs a 'role' (system, user, assistant, ...)", "messages")
    if reserved := RESERVED.intersection(variables):
        raise RequestError(f"{min(reserved)!r} is no variable of a chat template", "chat_template_kwargs")
    if add_generation_prompt is None:
        add_generation_prompt = not continue_final_message
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "add_generation_prompt and continue_final_message exclude each other: an answer is begun or gone on with",
            "continue_final_message",
        )
    if continue_final_message and not text_of(messages[-1].get("content")):
        raise RequestError("continue_final_message: the last message has no text to go on from", "messages")

    def apply(messages: list[dict[str, Any]]) -> str:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )

    # A template is code of the checkpoint's: what it raises on messages it does not understand is anything
    # (its own raise_exception, a None added to a string, an absent key).
    try:
        template = tokenizer.get_chat_template(tools=variables.get("tools"))
        read = _read_by(template)
        for name in ("tools", "documents"):
            if variables.get(name) and name not in read:
                raise RequestError(
                    f"{name}: this model's chat template has no place for them; leave them out, or name another "
                    "template with --chat-template",
                    name,
                )
        variables = _effort(variables, template)
        prepared = [_prepared(message, template, tokenizer) for message in messages]
        parsed = [_with_parsed_arguments(message) for message in prepared]
        try:
            return apply(parsed)
        except Exception:
            if parsed == prepared:
                raise
            return apply(prepared)  # some write arguments out as the text they came as
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"the chat template refuses these messages: {error}", "messages") from error


@functools.lru_cache(16)
def _read_by(template: str) -> frozenset[str]:
    """The variables that a template reads."""
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_SYNTAX.parse(template)))
    except jinja2.TemplateSyntaxError:  # it has tags of transformers' own
        return frozenset(name for name in ("tools", "documents") if name in template)


def text_of(content: Any) -> str:
    """A message's text; of several parts, joined by line breaks."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _prepared(message: Message, template: str, tokenizer: Any) -> dict[str, Any]:
    """A message as templates expect it.

    Content in parts goes to templates that know such, else as one text; some know nothing but parts. Reasoning has
    several names.
    """
    message = dict(message)
    if message.get("content") is None:  # as OpenAI answers with calls alone; transformers leaves out what is None
        message["content"] = ""
    content = message["content"]
    if isinstance(content, (str, list)):
        form = _content_form(tokenizer, template)
        if isinstance(content, list) and form == "text":
            message["content"] = text_of(content)
        elif isinstance(content, str) and form == "parts":
            message["content"] = [{"type": "text", "text": content}]
    if (thought := message.get("reasoning_content") or message.get("reasoning")) is not None:
        names = ("reasoning_content", "reasoning", "thinking")
        message |= {name: thought for name in names if f".{name}" in template or f"'{name}'" in template}
    return message


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Most templates take the arguments of calls as dictionaries; OpenAI's clients send them as JSON text."""

    def parsed(call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(arguments := function.get("arguments"), str):
            with contextlib.suppress(ValueError, RecursionError):
                return {**call, "function": {**function, "arguments": json.loads(arguments)}}
        return call

    if not message.get("tool_calls"):
        return message
    return message | {"tool_calls": [parsed(call) for call in message["tool_calls"]]}


def _effort(variables: dict[str, Any], template: str) -> dict[str, Any]:
    """reasoning_effort "none" turns thinking off where a template has that switch alone; others are the template's."""
    effort = variables.get("reasoning_effort")
    if effort is None or "reasoning_effort" in template:
        return variables
    if effort == "none" and "enable_thinking" in template:
        rest = {name: value for name, value in variables.items() if name != "reasoning_effort"}
        return {"enable_thinking": False} | rest
    raise RequestError(
        f"reasoning_effort={effort!r}: this model's chat template has no such setting; leave it out", "reasoning_effort"
    )


@functools.lru_cache(maxsize=16)
def _content_form(tokenizer: Any, template: str) -> Literal["either", "text", "parts"]:
    """What content the template takes, found by trying: text alone, parts alone, or either."""

    def shows(content: str | list[dict[str, str]]) -> bool:
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception:
            return False
        # A list that is printed as it is shows more than its text.
        return _PROBE in text and f"'{_PROBE}'" not in text and f'"{_PROBE}"' not in text

    if not shows([{"type": "text", "text": _PROBE}]):
        return "text"
    return "either" if shows(_PROBE) else "parts"
