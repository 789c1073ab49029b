"""Granite 3 (IBM 2024): Llama with factors on embedding, attention scores, what each block adds, and logits (muP)."""

from typing import Any

from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM


class GraniteForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return granite_config(fields, architecture, mlp_bias=fields.take("mlp_bias", bool, False))


def granite_config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    """The fields that Granite and its mixtures share."""
    bias = fields.take("attention_bias", bool, False)
    return decoder_config(
        fields,
        architecture,
        eos_token_id=2,
        qkv_bias=bias,
        out_bias=bias,
        embed_scale=fields.take("embedding_multiplier", float, 1.0),
        attention_scale=fields.take("attention_multiplier", float, 1.0),
        residual_scale=fields.take("residual_multiplier", float, 1.0),
        logit_scale=1.0 / fields.positive("logits_scaling", 1.0),
        **family,
    )
