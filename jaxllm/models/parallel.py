"""Blocks whose attention and MLP read the same input (GPT-J, Wang 2021; GPT-NeoX, Black et al. 2022)."""

from typing import ClassVar

import jax

from jaxllm.layers.cache import PagedCache
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.norm import LayerNorm, RMSNorm
from jaxllm.layers.parameter import Dtype
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig
from jaxllm.models.llama import LlamaAttention, LlamaBlock


class ParallelBlock(LlamaBlock):
    """x + attention(norm(x)) + mlp(norm(x)), one norm for both or one each; Llama's block where config says so."""

    norm_class: ClassVar[type[RMSNorm] | type[LayerNorm]] = LayerNorm

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[LlamaAttention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        super().__init__(config, layer, dtype, attention_class, mlp_class)
        self.norms = config.parallel_norms
        if self.norms == 1:
            del self.mlp_norm

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        if not self.norms:
            return super().__call__(x, rotation, step, cache)
        normed = self.attention_norm(x)
        mixed, cache = self.attention(normed, rotation, step, cache)
        return x + mixed + self.feed(normed if self.norms == 1 else self.mlp_norm(x), step), cache
