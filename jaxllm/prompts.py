"""What callers give as a prompt: text, token ids, or a mapping that says which; of an encoder-decoder also a pair."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.errors import RequestError

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}. An encoder-decoder's encoder reads it; where its
decoder is to go on from something, {"encoder_prompt": ..., "decoder_prompt": ...} of two of these, the second or None.
"""


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt, in whatever form, becomes a list of one."""
    if isinstance(prompts, (str, Mapping)) or (len(prompts) and isinstance(prompts[0], (int, np.integer))):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def pair_of(prompt: Prompt) -> tuple[Prompt, Prompt | None] | None:
    """What encoder and decoder are given; None for a prompt that is no such pair."""
    if not isinstance(prompt, Mapping) or set(prompt) != {"encoder_prompt", "decoder_prompt"}:
        return None
    return prompt["encoder_prompt"], prompt["decoder_prompt"]


def content_of(prompt: Prompt) -> str | Sequence[int]:
    """The text or the ids. Raises RequestError for what is neither."""
    content: Any = prompt
    if isinstance(prompt, Mapping):
        if set(prompt) not in ({"prompt"}, {"prompt_token_ids"}):
            raise RequestError(
                f"prompt has the keys {sorted(prompt)}: must be {{'prompt': text}} or {{'prompt_token_ids': ids}}, or, "
                "for an encoder-decoder, {'encoder_prompt': ..., 'decoder_prompt': ...} of two of these",
                "prompt",
            )
        (content,) = prompt.values()
    if isinstance(content, (str, Sequence)):
        return content
    raise RequestError(f"prompt={content!r}: must be text or a list of token ids", "prompt")
