"""Qwen3 (Qwen team 2025): Llama whose queries and keys are normalised head by head before they are turned."""

from typing import ClassVar

import jax

from jaxllm.layers.attention import Placement
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.rope import Rotation
from jaxllm.models.config import ModelConfig, decoder_config, read_windows
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM


class Qwen3Attention(LlamaAttention):
    norm_class: ClassVar[type[RMSNorm]] = RMSNorm

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.q_norm = self.norm_class(config.head_dim, config.norm_eps, dtype)
        self.k_norm = self.norm_class(config.head_dim, config.norm_eps, dtype)

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        q, k, placement = super().place(q, k, rotation)
        return q, k, placement.normed(self.q_norm, self.k_norm)


class Qwen3ForCausalLM(LlamaForCausalLM):
    attention_class = Qwen3Attention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention.q_norm.weight": Source.of("model.layers.*.self_attn.q_norm.weight"),
        "layers.*.attention.k_norm.weight": Source.of("model.layers.*.self_attn.k_norm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        windows = read_windows(fields, fields.size("num_hidden_layers"))
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(fields, architecture, head_dim=128, windows=windows, qkv_bias=bias, out_bias=bias)
