"""What a benchmark asks of the engine: prompts as token ids, with the number of tokens each must yield.

Three sources: the fixed workloads by name, random lengths, and a ShareGPT-format file.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllm.config import choice
from jaxllm.core import ModelInfo
from jaxllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Workload:
    """`num_requests` requests of `num_prompt` and `num_output` tokens each, all sent at once, greedy."""

    num_requests: int
    num_prompt: int
    num_output: int


WORKLOADS = {
    "single": Workload(1, 128, 256),
    "batch8": Workload(8, 1024, 128),
    "decode64": Workload(64, 128, 256),
    "mixed256": Workload(256, 1024, 256),
    "prefill": Workload(32, 4096, 1),
    "long": Workload(8, 32768, 64),
}


_ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "colour": {"enum": ["red", "green", "blue", "a shade between them"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99999},
        "ratio": {"type": "number", "minimum": 0, "maximum": 1},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "colour", "count", "ratio", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _ITEM, "minItems": 2000}
"""What structured answers are held to: too many items for any of them to end before its last token."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids to continue by exactly num_output tokens."""

    token_ids: list[int]
    num_output: int


def named(names: list[str]) -> dict[str, Workload]:
    """The fixed workloads of these names, in the table's order; "all" is every one."""
    for name in names:
        choice("workload", name, (*WORKLOADS, "all"))
    return {name: workload for name, workload in WORKLOADS.items() if name in names or "all" in names}


def fixed(workload: Workload, vocab_size: int, seed: int) -> list[Prompt]:
    return random_lengths(
        workload.num_requests, workload.num_prompt, workload.num_output, vocab_size=vocab_size, seed=seed
    )


def random_lengths(
    count: int, num_prompt: int, num_output: int, *, vocab_size: int, seed: int, range_ratio: float = 0.0
) -> list[Prompt]:
    """Random ids; lengths uniform in [n * (1 - range_ratio), n * (1 + range_ratio)], at least 1."""
    if not 0 <= range_ratio < 1:
        raise ConfigError(f"range_ratio={range_ratio}: must be in [0, 1); 0 makes every length the same")
    rng = np.random.default_rng(seed)

    def lengths(centre: int) -> np.ndarray:
        low, high = int(centre * (1 - range_ratio)), int(centre * (1 + range_ratio))
        return np.maximum(rng.integers(low, high + 1, count), 1)

    # The lowest ids are special tokens in most vocabularies.
    first = min(100, vocab_size // 2)
    return [
        Prompt(rng.integers(first, vocab_size, prompt).tolist(), int(output))
        for prompt, output in zip(lengths(num_prompt), lengths(num_output), strict=True)
    ]


def check_fit(prompts: Sequence[Prompt], info: ModelInfo) -> None:
    """Raises ConfigError for a prompt that leaves no room for its output; what an encoder reads takes none of it."""
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids) + prompt.num_output)
    if info.decoder_start is None and len(longest.token_ids) + longest.num_output > info.max_model_len:
        raise ConfigError(
            f"a prompt of {len(longest.token_ids)} tokens and an output of {longest.num_output} do not fit into the "
            f"context of {info.max_model_len}: lower --input-len or --output-len, or raise --max-model-len"
        )


def share_gpt(
    path: Path, count: int, encode: Callable[[str], list[int]], *, seed: int, num_output: int | None, max_len: int
) -> list[Prompt]:
    """The first two turns of `count` conversations, drawn at random: the question, answered as long as the answer.

    As in vLLM's benchmark, conversations with a turn under 4 tokens or over 1,024 of prompt, or over
    min(2048, max_len) together, are left out. num_output replaces every answer's length.
    """
    try:
        conversations = [entry["conversations"] for entry in json.loads(path.read_text(encoding="utf-8"))]
        turns = [(talk[0]["value"], talk[1]["value"]) for talk in conversations if len(talk) >= 2]
    except OSError as error:
        raise ConfigError(f"dataset {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"dataset {path}: not a ShareGPT file (a JSON list of conversations): {error!r}") from None
    random.Random(seed).shuffle(turns)
    prompts: list[Prompt] = []
    for question, answer in turns:
        if len(prompts) == count:
            break
        token_ids = encode(question)
        output = len(encode(answer)) if num_output is None else num_output
        if 4 <= len(token_ids) <= 1024 and output >= 4 and len(token_ids) + output <= min(2048, max_len):
            prompts.append(Prompt(token_ids, output))
    if len(prompts) < count:
        raise ConfigError(
            f"dataset {path}: holds {len(prompts)} usable conversations of {count} asked for; lower --num-prompts"
        )
    return prompts
