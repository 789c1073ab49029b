"""Ministral 3 (Mistral AI 2025): Mistral whose queries grow with their position, so that attention stays sharp."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.layers.attention import attend
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.parameter import Dtype
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class Ministral3Config(ModelConfig):
    """query_growth: how much a query grows each time the logarithm of the contexts behind it does by 1.

    query_context: positions of one such context.
    """

    query_growth: float
    query_context: int


class Ministral3Attention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        assert isinstance(config, Ministral3Config)
        self.query_growth, self.query_context = config.query_growth, config.query_context

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        q, k, v = self.heads(x)
        contexts = (step.positions // self.query_context).astype(jnp.float32)
        size = 1.0 + self.query_growth * jnp.log1p(contexts)
        q = (q.astype(jnp.float32) * size[:, None, None]).astype(q.dtype)
        q, k, placement = self.place(q, k, rotation)
        mixed, cache = attend(q, k, v, step, cache, scale=self.scale, placement=placement, window=self.window)
        return self.out(mixed.reshape(x.shape[0], -1)), cache


class Ministral3ForCausalLM(LlamaForCausalLM):
    attention_class: ClassVar[type[LlamaAttention]] = Ministral3Attention

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        rope = Fields(fields.take("rope_parameters", dict), f"{fields.where}rope ")
        growth, context = rope.take("llama_4_scaling_beta", float), rope.size("original_max_position_embeddings")
        rope.raw("max_position_embeddings")  # stands outside as well
        kept = rope.left | {"original_max_position_embeddings"}
        fields.put("rope_parameters", {name: rope.values[name] for name in kept})
        windows = (fields.size("sliding_window", None),) * fields.size("num_hidden_layers")
        config = decoder_config(fields, architecture, head_dim=128, eos_token_id=2, windows=windows)
        return Ministral3Config(**vars(config), query_growth=growth, query_context=context)
