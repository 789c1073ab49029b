"""Gemma, 2 and 3 (Gemma team 2024, 2024, 2025): a scaled embedding, norms that multiply by 1 + weight, wide heads.

Gemma 2 also normalises what a block adds, caps attention scores and logits, and gives every second layer a window;
Gemma 3 normalises queries and keys instead of capping, and layers with a window turn by another base.
"""

from typing import Any, ClassVar

import jax

from jaxllm.layers.cache import PagedCache
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.norm import UnitOffsetRMSNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import scaled
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, with_local_rope
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaBlock, LlamaForCausalLM
from jaxllm.models.qwen3 import Qwen3Attention, Qwen3ForCausalLM


class SandwichBlock(LlamaBlock):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[LlamaAttention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        super().__init__(config, layer, dtype, attention_class, mlp_class)
        self.attention_out_norm = self.norm_class(config.hidden_size, config.norm_eps, dtype)
        self.mlp_out_norm = self.norm_class(config.hidden_size, config.norm_eps, dtype)

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        mixed, cache = self.attention(self.attention_norm(x), rotation, step, cache)
        x = x + scaled(self.attention_out_norm(mixed), self.residual_scale)
        return x + scaled(self.mlp_out_norm(self.feed(self.mlp_norm(x), step)), self.residual_scale), cache


class GemmaBlock(LlamaBlock):
    norm_class = UnitOffsetRMSNorm


class Gemma2Block(SandwichBlock):
    norm_class = UnitOffsetRMSNorm


class Gemma3Attention(Qwen3Attention):
    norm_class = UnitOffsetRMSNorm


class GemmaForCausalLM(LlamaForCausalLM):
    block_class = GemmaBlock

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        activation = fields.take("hidden_act", str, "gelu_pytorch_tanh")
        fields.raw("hidden_activation")  # read by the generations that followed
        if activation == "gelu":  # as the first files say, which meant its approximation
            activation = "gelu_pytorch_tanh"
        return _gemma_config(fields, architecture, activation=activation)


class Gemma2ForCausalLM(LlamaForCausalLM):
    block_class = Gemma2Block
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention_out_norm.weight": Source.of("model.layers.*.post_attention_layernorm.weight"),
        "layers.*.mlp_norm.weight": Source.of("model.layers.*.pre_feedforward_layernorm.weight"),
        "layers.*.mlp_out_norm.weight": Source.of("model.layers.*.post_feedforward_layernorm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return _windowed_config(fields, architecture, period=2, soft_cap=50.0, logit_soft_cap=30.0)


class VaultGemmaForCausalLM(GemmaForCausalLM):
    """Gemma 2 trained with differential privacy: without the norms of what a block adds."""

    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.mlp_norm.weight": Source.of("model.layers.*.pre_feedforward_layernorm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return Gemma2ForCausalLM.configure(fields, architecture)


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    attention_class = Gemma3Attention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        Qwen3ForCausalLM.checkpoint_names | Gemma2ForCausalLM.checkpoint_names
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        period = fields.size("_sliding_window_pattern", 6)
        period = fields.size("sliding_window_pattern", period)
        theta = fields.take("rope_local_base_freq", float, 10000.0)
        config = _windowed_config(
            fields, architecture, period, soft_cap=None, logit_soft_cap=None, rope_theta=1000000.0
        )
        return with_local_rope(config, fields, theta)


def _windowed_config(
    fields: Fields,
    architecture: str,
    period: int,
    *,
    soft_cap: float | None,
    logit_soft_cap: float | None,
    **family: Any,
) -> ModelConfig:
    """Every `period`-th layer sees all. The caps are the family's own where the file does not say; null is none."""
    window = fields.size("sliding_window", 4096)
    fields.default_nullable(attn_logit_softcapping=soft_cap, final_logit_softcapping=logit_soft_cap)
    fields.raw("hidden_act")  # Gemma 1's
    return _gemma_config(
        fields,
        architecture,
        activation=fields.take("hidden_activation", str, "gelu_pytorch_tanh"),
        windows=read_layer_types(fields, fields.size("num_hidden_layers"), window, period),
        attention_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        soft_cap=fields.take("attn_logit_softcapping", float, None),
        logit_soft_cap=fields.take("final_logit_softcapping", float, None),
        **family,
    )


def _gemma_config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    fields.expect("use_bidirectional_attention", False, None)
    fields.raw("cache_implementation")
    bias = fields.take("attention_bias", bool, False)
    return decoder_config(
        fields,
        architecture,
        head_dim=256,
        eos_token_id=1,
        tied=True,
        embed_scale=fields.size("hidden_size") ** 0.5,
        embed_scale_rounded=True,
        qkv_bias=bias,
        out_bias=bias,
        **family,
    )
