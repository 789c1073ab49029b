"""Which models are served, by the names that their files bear."""

import json
import subprocess
import sys

import pytest
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from jaxllm.models import registry

ROWS: dict[str, tuple[str, type]] = {**registry.MODELS, **registry.ENCODER_DECODERS, **registry.POOLING_MODELS}
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")

FAMILIES = {
    "Llama, Yi, Solar 10.7B": ("LlamaForCausalLM", "LLaMAForCausalLM", "YiForCausalLM"),
    "InternLM": ("InternLMForCausalLM", "InternLM2ForCausalLM", "InternLM3ForCausalLM"),
    "Aquila": ("AquilaForCausalLM", "AquilaModel"),
    "Solar": ("SolarForCausalLM", "SolarOpenForCausalLM"),
    "SmolLM3, Seed-OSS, Arcee": ("SmolLM3ForCausalLM", "SeedOssForCausalLM", "ArceeForCausalLM", "AfmoeForCausalLM"),
    "Mistral": ("MistralForCausalLM", "MinistralForCausalLM", "Ministral3ForCausalLM", "MixtralForCausalLM"),
    "Qwen": ("QWenLMHeadModel", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
    "Gemma": ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
    "Phi": ("PhiForCausalLM", "Phi3ForCausalLM", "PhiMoEForCausalLM", "PhimoeForCausalLM"),
    "DeepSeek": ("DeepseekForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
    "GLM": ("ChatGLMModel", "ChatGLMForConditionalGeneration", "GlmForCausalLM", "Glm4ForCausalLM",
            "Glm4MoeForCausalLM", "Glm4MoeLiteForCausalLM"),
    "Cohere": ("CohereForCausalLM", "Cohere2ForCausalLM"),
    "Baichuan": ("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    "StarCoder": ("GPTBigCodeForCausalLM", "Starcoder2ForCausalLM"),
    "GPT": ("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM", "GPTNeoForCausalLM", "GptOssForCausalLM"),
    "OPT, Bloom": ("OPTForCausalLM", "BloomForCausalLM"),
    "Falcon": ("FalconForCausalLM", "RWForCausalLM", "FalconMambaForCausalLM", "FalconH1ForCausalLM"),
    "MPT, DBRX": ("MPTForCausalLM", "MptForCausalLM", "DbrxForCausalLM"),
    "ExaOne": ("ExaoneForCausalLM", "Exaone4ForCausalLM"),
    "OLMo": ("OlmoForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM"),
    "Persimmon, StableLM": ("PersimmonForCausalLM", "StableLmForCausalLM", "StableLMEpochForCausalLM"),
    "Nemotron": ("NemotronForCausalLM", "NemotronHForCausalLM"),
    "Granite": ("GraniteForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM",
                "GraniteMoeHybridForCausalLM", "BambaForCausalLM"),
    "MiniCPM": ("MiniCPMForCausalLM", "MiniCPM3ForCausalLM"),
    "state space": ("MambaForCausalLM", "Mamba2ForCausalLM", "JambaForCausalLM"),
    "encoders": tuple(name + head for name in ("Bert", "Roberta", "XLMRoberta", "ModernBert") for head in HEADS),
    "decoders as embedding models and classifiers": tuple(
        name + head for name in ("Llama", "Mistral", "Qwen2", "Qwen3") for head in HEADS[:2]
    ),
    "rewards": ("Qwen2ForRewardModel", "Qwen2ForProcessRewardModel", "InternLM2ForRewardModel"),
    "T5": ("T5ForConditionalGeneration", "T5WithLMHeadModel", "MT5ForConditionalGeneration"),
    "BART": ("BartForConditionalGeneration", "MBartForConditionalGeneration"),
}  # fmt: skip

AS_LLAMA = {"exaone", "internlm3", "iquestcoder"}
"""Which transformers 5 serves by Llama's class; their published files have fields of their own."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_that_users_know_are_served(family: str) -> None:
    assert [name for name in FAMILIES[family] if name not in ROWS] == []


def test_the_command_names_every_row() -> None:
    command = [sys.executable, "-m", "jaxllm", "models", "--json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)
    rows = listed["models"] if isinstance(listed, dict) else listed
    assert {row["architecture"]: row["model_type"] for row in rows} == {name: row[0] for name, row in ROWS.items()}


def test_transformers_names_for_a_model_type_mean_the_same_class() -> None:
    for names, rows in (
        (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, registry.MODELS),
        (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, registry.ENCODER_DECODERS),
    ):
        known = {model_type: model_class for model_type, model_class in rows.values() if model_type in names}
        assert len(known) >= 5
        for model_type, model_class in known.items():
            if model_type not in AS_LLAMA:
                assert rows[names[model_type]][1] is model_class, model_type


def test_a_model_type_alone_means_the_first_row_of_its_kind() -> None:
    """What a config.json without architectures, as configuration classes write it, is taken for."""
    seen = set()
    for name, (model_type, _) in ROWS.items():
        if model_type not in seen:
            assert registry._architecture({"model_type": model_type}, ROWS) == name
        seen.add(model_type)
    causal = {model_type for model_type, _ in registry.MODELS.values()}
    for model_type in causal & {model_type for model_type, _ in registry.POOLING_MODELS.values()}:
        assert registry._architecture({"model_type": model_type}, ROWS) in registry.MODELS
