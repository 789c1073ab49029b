"""Baichuan 1 and 2 (Yang et al. 2023): Llama with one fused projection; the 13B models have ALiBi in place of rotation,
and the second generation's head is normalised row by row."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.attention import slopes_of
from jaxllm.layers.linear import Linear
from jaxllm.layers.parameter import Dtype, Layout, Shape, Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM

NORMALISED = 125696
"""The vocabulary of Baichuan 2, which alone tells its files from those of Baichuan 1."""


def _unit_rows(stored: jax.Array, shape: Shape) -> jax.Array:
    """stored [V, E] -> [E, V], each token's vector of length one."""
    wide = stored.astype(jnp.float32)
    length = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / jnp.maximum(length, 1e-12)).T


class UnitHead(nnx.Module):
    """A head whose vectors have length one. The file's have not: loading divides them, once for all steps."""

    def __init__(self, config: ModelConfig, dtype: Dtype):
        sizes = config.hidden_size, config.vocab_size
        self.unit = Linear(*sizes, dtype, axes=("embed", "vocab"), std=config.hidden_size**-0.5)

    def __call__(self, x: jax.Array, dtype: Dtype = None) -> jax.Array:
        return self.unit(x, dtype)


class BaichuanForCausalLM(LlamaForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention.qkv.kernel": Source.linear("model.layers.*.self_attn.W_pack.weight"),
        "head.unit.kernel": Source(("lm_head.weight",), Layout(lambda shape: shape[::-1], _unit_rows)),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("tie_word_embeddings", False, None)
        for name in ("_from_model_config", "z_loss_weight"):
            fields.raw(name)
        if "max_position_embeddings" in fields.values:
            fields.raw("model_max_length")
            return decoder_config(fields, architecture, eos_token_id=2)
        fields.rename(model_max_length="max_position_embeddings")
        slopes = slopes_of(fields.size("num_attention_heads"))
        return decoder_config(fields, architecture, eos_token_id=2, rope=None, alibi=slopes)

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        if config.vocab_size == NORMALISED:
            self.head = UnitHead(config, dtype)
