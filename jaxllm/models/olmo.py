"""OLMo, 2 and 3 (Groeneveld et al. 2024; OLMo team 2024, 2025).

OLMo is Llama with norms that have no parameters, its queries, keys and values sometimes clipped. OLMo 2 normalises
what a block adds and not what it reads, and queries and keys over all heads at once; OLMo 3 adds windows.
"""

from typing import Any, ClassVar

import jax

from jaxllm.layers.attention import Placement
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.norm import LayerNorm, RMSNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, with_local_rope
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaBlock, LlamaForCausalLM


class BareLayerNorm(LayerNorm):
    """(x - mean(x)) / std(x)."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        super().__init__(size, eps, dtype, weight=False, bias=False)


class OlmoBlock(LlamaBlock):
    norm_class = BareLayerNorm


class PostNormBlock(LlamaBlock):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        mixed, cache = self.attention(x, rotation, step, cache)
        x = x + self.attention_norm(mixed)
        return x + self.mlp_norm(self.feed(x, step)), cache


class Olmo2Attention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.q_norm = RMSNorm(config.num_heads * config.head_dim, config.norm_eps, dtype)
        self.k_norm = RMSNorm(config.num_kv_heads * config.head_dim, config.norm_eps, dtype)

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        tokens = q.shape[0]
        q = self.q_norm(q.reshape(tokens, -1)).reshape(q.shape)
        k = self.k_norm(k.reshape(tokens, -1)).reshape(k.shape)
        return super().place(q, k, rotation)


class OlmoForCausalLM(LlamaForCausalLM):
    block_class = OlmoBlock

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        clip = fields.take("clip_qkv", float, None)
        return _olmo_config(fields, architecture, clip_qkv=clip, norm_eps=1e-5)


class Olmo2ForCausalLM(LlamaForCausalLM):
    block_class = PostNormBlock
    attention_class = Olmo2Attention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention_norm.weight": Source.of("model.layers.*.post_attention_layernorm.weight"),
        "layers.*.attention.q_norm.weight": Source.of("model.layers.*.self_attn.q_norm.weight"),
        "layers.*.attention.k_norm.weight": Source.of("model.layers.*.self_attn.k_norm.weight"),
        "layers.*.mlp_norm.weight": Source.of("model.layers.*.post_feedforward_layernorm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        return _olmo_config(fields, architecture)


class Olmo3ForCausalLM(Olmo2ForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        window = fields.size("sliding_window", 4096)
        windows = read_layer_types(fields, fields.size("num_hidden_layers"), window, period=4)
        theta = fields.take("rope_theta", float, 500000.0)
        config = _olmo_config(fields, architecture, windows=windows, rope_theta=theta)
        return with_local_rope(config, fields, theta)


def _olmo_config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    bias = fields.take("attention_bias", bool, False)
    return decoder_config(fields, architecture, eos_token_id=50279, qkv_bias=bias, out_bias=bias, **family)
