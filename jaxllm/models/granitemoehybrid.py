"""Granite 4 (IBM 2025): Granite's mixtures, or its MLPs, with Mamba 2 in place of most layers' attention."""

from dataclasses import replace
from typing import ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.granite import granite_config
from jaxllm.models.granitemoe import GraniteMoeForCausalLM
from jaxllm.models.hybrid import HybridForCausalLM
from jaxllm.models.mamba import TRAINING, read_activation
from jaxllm.models.mamba2 import mamba2_names, read_mamba2

_LAYER = "model.layers.*"
_KINDS = {"mamba": True, "linear_attention": True, "attention": False, "full_attention": False}


class GraniteMoeHybridForCausalLM(HybridForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = GraniteMoeForCausalLM.checkpoint_names | {
        **mamba2_names("layers.*.mamba", f"{_LAYER}.mamba"),
        "layers.*.mlp.gate_up.kernel": Source.linear(f"{_LAYER}.shared_mlp.input_linear.weight"),
        "layers.*.mlp.down.kernel": Source.linear(f"{_LAYER}.shared_mlp.output_linear.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        num_layers, shared_size = fields.size("num_hidden_layers"), fields.size("shared_intermediate_size", 1024)
        num_experts, per_token = fields.take("num_local_experts", int, 8), fields.take("num_experts_per_tok", int, 2)
        mixture = None
        if num_experts > 0:
            mixture = Mixture(
                sparse=(True,) * num_layers,
                num_experts=num_experts,
                inner_size=fields.size("intermediate_size"),
                routing=SoftmaxTopK(per_token),
                shared_size=shared_size,
            )
        fields.put("intermediate_size", shared_size)  # of the MLPs, where there are no experts
        types = fields.take_list("layer_types", str, fields.take_list("layers_block_type", str, ["mamba"] * num_layers))
        if len(types) != num_layers or not set(types) <= set(_KINDS):
            raise ConfigError(f"{fields.where}layer_types must hold {num_layers} times mamba or attention, not {types}")
        position = fields.raw("position_embedding_type")
        fields.expect("position_embedding_type", None, "nope", "rope")
        fields.expect("normalization_function", "rmsnorm")
        fields.ignore("init_method", *TRAINING)
        read_activation(fields)
        config = granite_config(
            fields,
            architecture,
            mixture=mixture,
            state_space=read_mamba2(fields),
            recurrent=tuple(_KINDS[kind] for kind in types),
        )
        return config if position == "rope" else replace(config, rope=None)
