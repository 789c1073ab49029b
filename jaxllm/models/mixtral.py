"""Mixtral (Jiang et al. 2024): Mistral with a mixture of experts in every layer; the block that other mixtures vary."""

from typing import ClassVar

import jax

from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.moe import Mixture, MoE, SoftmaxTopK
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import Attention, LlamaBlock, LlamaForCausalLM


class MoEBlock(LlamaBlock):
    """A Llama block with a mixture of experts for its MLP, in the layers that config.mixture names, if any."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[Attention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        super().__init__(config, layer, dtype, attention_class, mlp_class)
        if config.mixture is not None and config.mixture.sparse[layer]:
            self.mlp = MoE(
                config.mixture, config.hidden_size, config.activation, dtype,
                std=config.initializer_range, out_std=config.out_std,
            )  # fmt: skip

    def feed(self, x: jax.Array, step: Step | DenseStep) -> jax.Array:
        """x [T, E] through the mixture, which passes over padding, or the MLP -> [T, E]."""
        return self.mlp(x, step.real) if isinstance(self.mlp, MoE) else self.mlp(x)


def expert_names(module: str, gate: str, up: str, down: str) -> dict[str, Source]:
    """Sources of a layer's router and experts. module: of the layer; the others: an expert's projections in it."""
    layer = f"model.layers.*.{module}"
    return {
        "layers.*.mlp.router.kernel": Source.linear(f"{layer}.gate.weight"),
        "layers.*.mlp.experts.gate_up": Source.linear(
            f"{layer}.experts.*.{gate}.weight", f"{layer}.experts.*.{up}.weight"
        ),
        "layers.*.mlp.experts.down": Source.linear(f"{layer}.experts.*.{down}.weight"),
    }


class MixtralForCausalLM(LlamaForCausalLM):
    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | expert_names(
        "block_sparse_moe", "w1", "w3", "w2"
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        num_layers = fields.size("num_hidden_layers")
        mixture = Mixture(
            sparse=(True,) * num_layers,
            num_experts=fields.size("num_local_experts", 8),
            inner_size=fields.size("intermediate_size"),
            routing=SoftmaxTopK(fields.size("num_experts_per_tok", 2)),
        )
        windows = (fields.size("sliding_window", None),) * num_layers
        return decoder_config(
            fields, architecture, eos_token_id=2, rope_theta=1000000.0, windows=windows, mixture=mixture
        )
