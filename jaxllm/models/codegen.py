"""CodeGen (Nijkamp et al. 2023): GPT-J whose fused projection is kept as the four machines held it that trained it."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.errors import ConfigError
from jaxllm.layers.parameter import Source, linear_rows
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.gpt_neox import HeadwiseAttention
from jaxllm.models.gptj import GPTJForCausalLM

SHARDS = 4


class CodeGenAttention(HeadwiseAttention):
    """Its fused projection holds, one shard after another, a quarter of the queries, of the values and of the keys."""

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shards = self.qkv(x).reshape(x.shape[0], SHARDS, 3, -1, self.head_dim)
        q, v, k = (part.reshape(x.shape[0], -1, self.head_dim) for part in jnp.moveaxis(shards, 2, 0))
        return q, k, v


class CodeGenForCausalLM(GPTJForCausalLM):
    attention_class = CodeGenAttention
    checkpoint_ignored = (r"attn\.(causal_mask|bias|masked_bias|embed_positions)$",)  # masks and sines of old files
    checkpoint_names: ClassVar[dict[str, Source]] = GPTJForCausalLM.checkpoint_names | linear_rows(
        "layers.*.attention.qkv", "transformer.h.*.attn.qkv_proj"
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        config = super().configure(fields, architecture)
        if config.num_heads % SHARDS:
            raise ConfigError(f"{fields.where}n_head={config.num_heads} must be a multiple of {SHARDS}")
        return config
