"""Phi-3.5-MoE (Microsoft 2024): Mixtral's block with LayerNorm and biases, its experts chosen by SparseMixer."""

from typing import ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.moe import Mixture, SparseMixer
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.mixtral import MixtralForCausalLM, MoEBlock


class PhiMoEBlock(MoEBlock):
    norm_class = LayerNorm


class PhiMoEForCausalLM(MixtralForCausalLM):
    block_class = PhiMoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = MixtralForCausalLM.checkpoint_names | {
        "layers.*.attention_norm.bias": Source.of("model.layers.*.input_layernorm.bias"),
        "layers.*.mlp_norm.bias": Source.of("model.layers.*.post_attention_layernorm.bias"),
        "norm.bias": Source.of("model.norm.bias"),
        "head.bias": Source.of("lm_head.bias"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        for name in ("expert_dropout", "input_jitter_noise"):  # of training
            fields.raw(name)
        top_k = fields.size("num_experts_per_tok", 2)
        if top_k != 2:
            raise ConfigError(f"config.json: num_experts_per_tok={top_k}: SparseMixer chooses 2; take the model's own")
        num_layers = fields.size("num_hidden_layers")
        mixture = Mixture(
            sparse=(True,) * num_layers,
            num_experts=fields.size("num_local_experts", 16),
            inner_size=fields.size("intermediate_size"),
            routing=SparseMixer(fields.take("router_jitter_noise", float, 0.01)),
        )
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            windows=(fields.size("sliding_window", None),) * num_layers,
            qkv_bias=bias,
            out_bias=bias,
            head_bias=fields.take("lm_head_bias", bool, False),
            mixture=mixture,
        )
