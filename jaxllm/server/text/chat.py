"""Chat templates: messages become the prompt that the model was trained to answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.errors import ConfigError, RequestError

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."} and whatever more the template reads (name, tool_calls, ...)."""


def read_template(path: str) -> str:
    """A Jinja file that replaces the checkpoint's own template."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template={path!r}: cannot be read ({error}); name a Jinja file in UTF-8") from error


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    continue_final_message: bool = False,
    add_generation_prompt: bool | None = None,
    **variables: Any,
) -> str:
    """The prompt's text.

    tokenizer: a transformers tokenizer with its chat template; it renders in a sandbox.
    continue_final_message: the last message is the beginning of the answer, left open for the model to go on.
    add_generation_prompt: open the assistant's turn; by default unless continue_final_message.
    variables: extra variables of the template (tools, documents, enable_thinking, ...).

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
    if add_generation_prompt is None:
        add_generation_prompt = not continue_final_message
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "add_generation_prompt and continue_final_message exclude each other: an answer is begun or gone on with",
            "continue_final_message",
        )
    if continue_final_message and not isinstance(messages[-1].get("content"), str):
        raise RequestError("continue_final_message: the last message has no text to go on from", "messages")
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )
    # A template is code of the checkpoint's: what it raises on messages it does not understand is anything
    # (its own raise_exception, a None added to a string, an absent key).
    except Exception as error:
        raise RequestError(f"the chat template refuses these messages: {error}", "messages") from error
