"""Llama in all but a detail: which biases there are, the MLP's make, which features positions turn together.

Seed-OSS (ByteDance 2025), Arcee (Arcee AI 2025), Helium (Kyutai 2025), ERNIE 4.5 (Baidu 2025), InternLM and InternLM3
(Shanghai AI Laboratory 2023, 2025), IQuest-Coder (IQuest 2026), Orion (OrionStar 2024), MiMo (Xiaomi 2025), MiniCPM
(OpenBMB 2024).
"""

from typing import Any, ClassVar

from jaxllm.layers.mlp import MLP
from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaBlock, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock, expert_names
from jaxllm.models.qwen2 import Qwen2ForCausalLM


class SeedOssForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return decoder_config(
            fields,
            architecture,
            head_dim=128,
            eos_token_id=2,
            qkv_bias=fields.take("attention_bias", bool, True),
            out_bias=fields.take("attention_out_bias", bool, False),
            mlp_bias=fields.take("mlp_bias", bool, False),
        )


class ArceeForCausalLM(LlamaForCausalLM):
    """An ungated MLP of squared rectifiers."""

    mlp_class = MLP
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.mlp.up.kernel": Source.linear("model.layers.*.mlp.up_proj.weight"),
        "layers.*.mlp.up.bias": Source.of("model.layers.*.mlp.up_proj.bias"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=128001,
            activation=fields.take("hidden_act", str, "relu2"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, False),
        )


class HeliumForCausalLM(LlamaForCausalLM):
    """Neighbouring features are turned together."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-8)
        return decoder_config(
            fields,
            architecture,
            head_dim=128,
            eos_token_id=2,
            rope_theta=100000.0,
            interleaved=True,
            qkv_bias=fields.take("attention_bias", bool, False),
            mlp_bias=fields.take("mlp_bias", bool, False),
        )


class Ernie45ForCausalLM(LlamaForCausalLM):
    """Neighbouring features are turned together; biases everywhere or nowhere."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        bias = fields.take("use_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            head_dim=128,
            eos_token_id=2,
            tied=True,
            rope_theta=500000.0,
            interleaved=True,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bias,
        )


class InternLMForCausalLM(LlamaForCausalLM):
    """Biases in attention."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        bias = fields.take("bias", bool, True)
        return decoder_config(fields, architecture, eos_token_id=2, qkv_bias=bias, out_bias=bias)


class InternLM3ForCausalLM(LlamaForCausalLM):
    """Biases in queries, keys and values apart from the others'. Transformers' own files name them as Llama's do."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        fields.rename(attention_bias="qkv_bias", mlp_bias="bias")
        bias = fields.take("bias", bool, False)
        qkv_bias = fields.take("qkv_bias", bool, False)
        return decoder_config(
            fields, architecture, head_dim=128, eos_token_id=2, qkv_bias=qkv_bias, out_bias=bias, mlp_bias=bias
        )


class IQuestCoderForCausalLM(LlamaForCausalLM):
    """What its program could do besides, no checkpoint asks for."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5, head_dim=128)
        fields.expect("clip_qkv", None)
        fields.expect("use_sliding_window", False, None)
        fields.ignore("max_window_layers", "sliding_window")
        return super().configure(fields, architecture)


class OrionBlock(LlamaBlock):
    norm_class = LayerNorm


class OrionForCausalLM(LlamaForCausalLM):
    """LayerNorm with biases."""

    block_class = OrionBlock
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention_norm.bias": Source.of("model.layers.*.input_layernorm.bias"),
        "layers.*.mlp_norm.bias": Source.of("model.layers.*.post_attention_layernorm.bias"),
        "norm.bias": Source.of("model.norm.bias"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        positions = fields.size("max_position_embeddings")
        fields.expect("max_sequence_length", positions, None)
        return decoder_config(fields, architecture, eos_token_id=2)


class MiMoForCausalLM(Qwen2ForCausalLM):
    """Qwen2 beside whose layers stand others that draft tokens, which are not loaded."""

    checkpoint_ignored = (*Qwen2ForCausalLM.checkpoint_ignored, r"^model\.mtp_layers\.")

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("attention_bias", True)
        fields.raw("num_nextn_predict_layers")
        return super().configure(fields, architecture)


class MiniCPMForCausalLM(LlamaForCausalLM):
    """Factors on embedding, on what each block adds, and on logits (muP); MiniCPM-MoE has Mixtral's experts."""

    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | expert_names(
        "mlp", "w1", "w3", "w2"
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        num_experts, top_k = fields.take("num_experts", int, 0), fields.size("num_experts_per_tok", 2)
        mixture = Mixture(
            sparse=(True,) * fields.size("num_hidden_layers"),
            num_experts=num_experts,
            inner_size=fields.size("intermediate_size"),
            routing=SoftmaxTopK(top_k),
        )
        bias = fields.take("attention_bias", bool, False)
        scales = read_scales(fields)
        return decoder_config(
            fields, architecture, eos_token_id=2, tied=True, qkv_bias=bias, out_bias=bias,
            mixture=mixture if num_experts else None, **scales,
        )  # fmt: skip


def read_scales(fields: Fields, *, embed: float = 1.0, depth: float = 1.0, base: int | None = None) -> dict[str, Any]:
    """MiniCPM's factors by their names in ModelConfig; embed, depth, base: where the file is silent."""
    hidden_size = fields.size("hidden_size")
    fields.raw("mup_denominator")  # of training
    return {
        "embed_scale": fields.take("scale_emb", float, embed),
        "residual_scale": fields.take("scale_depth", float, depth) / fields.size("num_hidden_layers") ** 0.5,
        "logit_scale": fields.size("dim_model_base", base or hidden_size) / hidden_size,
    }
