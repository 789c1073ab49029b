"""What `jaxllm models` says of the registry's rows, which is read off the classes."""

import json
from pathlib import Path

import pytest

from jaxllm.models.describe import Description, describe_all
from jaxllm.models.registry import ENCODER_DECODERS, MODELS, POOLING_MODELS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def rows() -> dict[str, Description]:
    return {row.architecture: row for row in describe_all()}


def test_there_are_at_least_75_names_each_with_recorded_parity(rows):
    recorded = set()
    for folder in ("reference", "reference_encoder_decoder", "reference_pooling"):
        for config in (HERE / folder).glob("*/config.json"):
            recorded.update(json.loads(config.read_text())["architectures"])
            assert (config.parent / "reference.npz").is_file()
    assert rows.keys() == {*MODELS, *ENCODER_DECODERS, *POOLING_MODELS}
    assert len(rows) >= 75
    assert rows.keys() - recorded == set()


def test_what_generates_caches_and_what_pools_does_not(rows):
    assert {name for name, row in rows.items() if row.task == "generate"} == {*MODELS, *ENCODER_DECODERS}
    assert all(bool(row.caches) == (row.task == "generate") for row in rows.values())
    assert all(row.blocks for row in rows.values())


@pytest.mark.parametrize(
    ("name", "family", "block", "caches", "features"),
    [
        ("LlamaForCausalLM", "llama", "LlamaBlock", {"pages"}, {"rope"}),
        ("Gemma2ForCausalLM", "gemma", "Gemma2Block", {"pages", "windowed pages"}, {"rope", "window", "soft cap"}),
        ("DeepseekV3ForCausalLM", "deepseek_v3", "MoEBlock", {"latents"}, {"rope", "mla", "moe"}),
        ("GptOssForCausalLM", "gpt_oss", "MoEBlock", {"pages", "windowed pages"}, {"rope", "window", "sinks", "moe"}),
        ("FalconForCausalLM", "falcon", "ParallelBlock", {"pages"}, {"rope", "alibi", "parallel"}),
        ("GPT2LMHeadModel", "gpt2", "GPT2Block", {"pages"}, {"learned positions"}),
        ("T5ForConditionalGeneration", "t5", "Block", {"pages", "cross"}, {"distance bias", "encoder"}),
        ("BartForConditionalGeneration", "bart", "Block", {"pages", "cross"}, {"learned positions", "encoder"}),
        ("ModernBertModel", "modernbert", "ModernBertBlock", set(), {"rope", "window", "encoder"}),
        ("Qwen3Model", "qwen3", "LlamaBlock", set(), {"rope", "window", "qk norm"}),
    ],
)
def test_rows_say_what_the_families_are(rows, name, family, block, caches, features):
    row = rows[name]
    assert row.family == family
    assert row.blocks == (block,)
    assert set(row.caches) == caches
    assert set(row.features) == features
