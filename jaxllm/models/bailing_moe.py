"""Ling and Ring (inclusionAI 2025): DeepSeek's experts around fused attention, and in 2.0 those of GLM-4.5."""

from typing import Any, ClassVar

from jaxllm.layers.parameter import Source
from jaxllm.models import glm4_moe
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.deepseek import DeepseekForCausalLM, read_mixture
from jaxllm.models.fields import Fields
from jaxllm.models.glm4_moe import Glm4MoeForCausalLM

_LAYER = "model.layers.*"
_FUSED: dict[str, Source] = {
    "embed.table": Source.of("model.word_embeddings.weight"),
    "layers.*.attention.qkv.kernel": Source.linear(f"{_LAYER}.attention.query_key_value.weight"),
    "layers.*.attention.qkv.bias": Source.of(f"{_LAYER}.attention.query_key_value.bias"),
    "layers.*.attention.out.kernel": Source.linear(f"{_LAYER}.attention.dense.weight"),
    "layers.*.attention.out.bias": Source.of(f"{_LAYER}.attention.dense.bias"),
}


class BailingMoeForCausalLM(DeepseekForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = DeepseekForCausalLM.checkpoint_names | _FUSED

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(num_experts="n_routed_experts", num_shared_experts="n_shared_experts")
        mixture = read_mixture(fields, normalised=True)
        fields.expect("use_qk_norm", False, None)
        fields.raw("max_window_layers")
        fields.expect("use_sliding_window", False, None)
        return _config(fields, architecture, mixture=mixture)


class BailingMoeV2ForCausalLM(Glm4MoeForCausalLM):
    """Ling 2.0 and Ring 2.0: heads are normalised and turned in part."""

    checkpoint_names: ClassVar[dict[str, Source]] = (
        Glm4MoeForCausalLM.checkpoint_names
        | _FUSED
        | {
            "layers.*.attention.q_norm.weight": Source.of(f"{_LAYER}.attention.query_layernorm.weight"),
            "layers.*.attention.k_norm.weight": Source.of(f"{_LAYER}.attention.key_layernorm.weight"),
            "layers.*.mlp.correction": Source.of(f"{_LAYER}.mlp.gate.expert_bias"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.raw("mtp_loss_scaling_factor")  # of training
        fields.raw("router_dtype")
        fields.expect("moe_router_enable_expert_bias", True, None)
        fields.expect("score_function", "sigmoid", None)
        fields.expect("use_rmsnorm", True, None)
        fields.rename(num_experts="n_routed_experts", num_shared_experts="n_shared_experts")
        mixture = glm4_moe.read_mixture(fields, dense=fields.take("first_k_dense_replace", int, 0))
        fields.expect("moe_shared_expert_intermediate_size", mixture.inner_size, None)
        return _config(
            fields,
            architecture,
            partial_rotary_factor=1.0,
            qk_norm=fields.take("use_qk_norm", bool, True),
            mixture=mixture,
        )


def _config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    """What both generations' files say beside the mixture."""
    fields.expect("norm_head", False, None)
    fields.expect("norm_softmax", False, None)
    fields.ignore("output_dropout")
    bias = fields.take("use_bias", bool, False)
    return decoder_config(
        fields,
        architecture,
        rope_theta=600000.0,
        qkv_bias=fields.take("use_qkv_bias", bool, False),
        out_bias=bias,
        mlp_bias=bias,
        **family,
    )
