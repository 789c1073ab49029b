"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023): parallel blocks under one LayerNorm, part of each head turned, biases
everywhere, the head included."""

from typing import ClassVar

import jax

from jaxllm.layers.attention import Placement
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.layers.rope import Rotation
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.parallel import ParallelBlock


class PhiAttention(LlamaAttention):
    """Queries and keys under a LayerNorm of their own, where config says so."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.q_norm = LayerNorm(config.head_dim, config.norm_eps, dtype) if config.qk_norm else None
        self.k_norm = LayerNorm(config.head_dim, config.norm_eps, dtype) if config.qk_norm else None

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return super().place(q, k, rotation)


class PhiForCausalLM(LlamaForCausalLM):
    block_class = ParallelBlock
    attention_class = PhiAttention
    mlp_class = MLP
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.embed_tokens.weight"),
        **norm_rows("layers.*.attention_norm", "model.layers.*.input_layernorm"),
        **linear_rows(
            "layers.*.attention.qkv",
            "model.layers.*.self_attn.q_proj",
            "model.layers.*.self_attn.k_proj",
            "model.layers.*.self_attn.v_proj",
        ),
        **norm_rows("layers.*.attention.q_norm", "model.layers.*.self_attn.q_layernorm"),
        **norm_rows("layers.*.attention.k_norm", "model.layers.*.self_attn.k_layernorm"),
        **linear_rows("layers.*.attention.out", "model.layers.*.self_attn.dense"),
        **linear_rows("layers.*.mlp.up", "model.layers.*.mlp.fc1"),
        **linear_rows("layers.*.mlp.down", "model.layers.*.mlp.fc2"),
        **norm_rows("norm", "model.final_layernorm"),
        **linear_rows("head", "lm_head"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("model_type", "phi")  # phi-msft, the first files, names all its fields and weights differently
        fields.expect("tie_word_embeddings", False, None)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            partial_rotary_factor=0.5,
            norm_eps=fields.take("layer_norm_eps", float, 1e-5),
            activation=fields.take("hidden_act", str, "gelu_new"),
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            parallel_norms=1,
            qk_norm=fields.take("qk_layernorm", bool, False),
            head_bias=True,
        )
