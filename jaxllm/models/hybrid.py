"""Models some of whose layers attend while the others are state-space layers; each family says which."""

from typing import Any, ClassVar

import jax

from jaxllm.core import LayerSpecs
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.parameter import Dtype
from jaxllm.layers.rope import Rotation
from jaxllm.layers.ssm import make_mixer
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import scaled
from jaxllm.models.config import ModelConfig
from jaxllm.models.llama import Attention, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock


class HybridBlock(MoEBlock):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the mixer is attention, or a state-space layer where config says."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[Attention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        super().__init__(config, layer, dtype, attention_class, mlp_class)
        assert config.state_space is not None
        self.recurrent = config.recurrent[layer]
        if self.recurrent:
            del self.attention
            self.mamba = make_mixer(
                config.state_space, config.hidden_size, dtype, std=config.initializer_range, out_std=config.out_std
            )

    def __call__(self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: Any) -> tuple[jax.Array, Any]:
        """x [T, E] -> [T, E], cache: a PagedCache where the layer attends, otherwise a StateCache."""
        mixed = self.attention_norm(x)
        if self.recurrent:
            mixed, cache = self.mamba(mixed, step, cache)
        else:
            mixed, cache = self.attention(mixed, rotation, step, cache)
        normed, x = self.mlp_norm.add(scaled(mixed, self.residual_scale), x)
        return x + scaled(self.feed(normed, step), self.residual_scale), cache


class HybridForCausalLM(LlamaForCausalLM):
    block_class: ClassVar[type[HybridBlock]] = HybridBlock

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        attention = super().cache_specs()
        return tuple(
            layer.mamba.state if recurrent else attention[i]
            for i, (layer, recurrent) in enumerate(zip(self.layers, self.config.recurrent, strict=True))
        )
