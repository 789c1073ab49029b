"""OLMoE (Muennighoff et al. 2024): OLMo 2's attention, clipped after its norms, Llama's order of norms, experts; and
FlexOlmo (Shi et al. 2025): OLMo 2 with such experts."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock, expert_names
from jaxllm.models.olmo import Olmo2Attention, Olmo2ForCausalLM, PostNormBlock


class OlmoeAttention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.q_norm = RMSNorm(config.num_heads * config.head_dim, config.norm_eps, dtype)
        self.k_norm = RMSNorm(config.num_kv_heads * config.head_dim, config.norm_eps, dtype)

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = self.qkv.split(x)
        parts = [self.q_norm(q), self.k_norm(k), v]
        if self.clip_qkv is not None:
            parts = [jnp.clip(part, -self.clip_qkv, self.clip_qkv) for part in parts]
        q, k, v = (part.reshape(x.shape[0], -1, self.head_dim) for part in parts)
        return q, k, v


class OlmoeForCausalLM(LlamaForCausalLM):
    block_class: ClassVar[type[MoEBlock]] = MoEBlock
    attention_class: ClassVar[type[LlamaAttention]] = OlmoeAttention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        LlamaForCausalLM.checkpoint_names
        | expert_names("mlp", "gate_proj", "up_proj", "down_proj")
        | {
            "layers.*.attention.q_norm.weight": Source.of("model.layers.*.self_attn.q_norm.weight"),
            "layers.*.attention.k_norm.weight": Source.of("model.layers.*.self_attn.k_norm.weight"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        mixture = _read_mixture(fields, num_experts=64, top_k=8)
        bias = fields.take("attention_bias", bool, False)
        clip = fields.take("clip_qkv", float, None)
        return decoder_config(
            fields, architecture, eos_token_id=50279, qkv_bias=bias, out_bias=bias, clip_qkv=clip, mixture=mixture
        )


class FlexOlmoBlock(PostNormBlock, MoEBlock):
    """x + norm(attention(x)), then x + norm(experts(x))."""


class FlexOlmoForCausalLM(OlmoeForCausalLM):
    block_class = FlexOlmoBlock
    attention_class = Olmo2Attention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        OlmoeForCausalLM.checkpoint_names | Olmo2ForCausalLM.checkpoint_names
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        bias = fields.take("attention_bias", bool, False)
        mixture = _read_mixture(fields, num_experts=7, top_k=5)
        return decoder_config(
            fields, architecture, eos_token_id=100257, rope_theta=500000.0, qkv_bias=bias, out_bias=bias,
            mixture=mixture,
        )  # fmt: skip


def _read_mixture(fields: Fields, *, num_experts: int, top_k: int) -> Mixture:
    """num_experts, top_k: the family's own where the file does not say."""
    normalised = fields.take("norm_topk_prob", bool, False)
    return Mixture(
        sparse=(True,) * fields.size("num_hidden_layers"),
        num_experts=fields.size("num_local_experts", None) or fields.size("num_experts", num_experts),
        inner_size=fields.size("intermediate_size"),
        routing=SoftmaxTopK(fields.size("num_experts_per_tok", top_k), norm=1.0 if normalised else None),
    )
