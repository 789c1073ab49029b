"""Whole models through the kernels, interpreted: the tokens that they draw are those that references draw."""

from pathlib import Path

import jax
import numpy as np
import pytest
from paged import Program, Sequences, draw_greedily

from jaxllm import weights
from jaxllm.models import registry
from jaxllm.server.text import Tokenizer
from pallas_kernels import choose

REFERENCE = Path(__file__).parents[1] / "models" / "reference"
# What each has that the others have not, by the operations that serve it.
CASES = {
    "bloom-bare-names": {"kv_write", "paged_attention"},  # ALiBi, positions elsewhere
    "deepseek-v2-lite": {"latent_write", "mla_attention", "moe", "softmax_top_k"},
    "gemma2-caps-and-windows": {"decode_attention", "qk_norm_rope_kv_write", "paged_attention"},
    "gpt-oss-yarn-window": {"decode_attention", "moe"},  # sinks
    "jamba-experts": {"causal_conv", "selective_scan", "moe"},
    "mamba2-groups": {"causal_conv", "ssd"},
    "qwen3-moe-normalised": {"decode_attention", "moe", "rms_norm_residual"},  # norms of heads, groups
}


def _program(folder: Path) -> Program:
    model = registry.resolve(weights.read_config(folder)).build("float32")
    return Program(weights.load(model, folder))


def _greedily(program: Program, sequences: list[np.ndarray], count: int) -> list[list[int]]:
    """The last prompt begun alone, its rest in one step with the others, then token by token."""
    paged = Sequences(program, rows=len(sequences), pages_per_row=8)
    *others, last_row = range(len(sequences))
    half = len(sequences[last_row]) // 2
    paged.extend({last_row: sequences[last_row][:half]})
    given = {row: sequences[row] for row in others} | {last_row: sequences[last_row][half:]}
    last = {row: logits[-1] for row, logits in paged.extend(given, tokens_in_step=32).items()}
    drawn = draw_greedily(paged.decode, last, count)
    return [drawn[row] for row in range(len(sequences))]


@pytest.mark.parametrize("name", CASES)
def test_families_draw_what_transformers_drew(name: str, interpreter: None) -> None:
    with np.load(REFERENCE / name / "reference.npz") as recorded:
        sequences = np.split(recorded["ids"], np.cumsum(recorded["lengths"])[:-1])
        greedy = recorded["greedy"][:, :3]
    program = _program(REFERENCE / name)
    choose._choices.clear()  # of tests before
    with jax.disable_jit(), choose.using("triton"):  # the interpreter runs outside jit only
        drawn = _greedily(program, sequences, greedy.shape[1])
    assert drawn == greedy.tolist()
    assert {choice.operation for choice in choose.choices() if choice.backend == "triton"} >= CASES[name]


def test_the_demo_model_goes_on_as_through_references(interpreter: None) -> None:
    program = _program(weights.resolve_model_path("demo"))
    tokenizer = Tokenizer.load(weights.resolve_model_path("demo"))
    prompts = [np.array(tokenizer.encode(text)) for text in ("The", "Once upon a time", "The captain said that")]
    assert len({len(prompt) for prompt in prompts}) == 3
    by_references = _greedily(program, prompts, 6)
    with jax.disable_jit(), choose.using("triton"):
        assert _greedily(program, prompts, 6) == by_references
