"""Granite 3 MoE (IBM 2024): Granite with mixtures of experts; its shared variant has an MLP for every token beside."""

from typing import ClassVar

from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.granite import GraniteForCausalLM, granite_config
from jaxllm.models.mixtral import MoEBlock


class GraniteMoeForCausalLM(GraniteForCausalLM):
    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = GraniteForCausalLM.checkpoint_names | {
        "layers.*.mlp.router.kernel": Source.linear("model.layers.*.block_sparse_moe.router.layer.weight"),
        "layers.*.mlp.experts.gate_up": Source.linear("model.layers.*.block_sparse_moe.input_linear.weight"),
        "layers.*.mlp.experts.down": Source.linear("model.layers.*.block_sparse_moe.output_linear.weight"),
        "layers.*.mlp.shared.gate_up.kernel": Source.linear("model.layers.*.shared_mlp.input_linear.weight"),
        "layers.*.mlp.shared.down.kernel": Source.linear("model.layers.*.shared_mlp.output_linear.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        mixture = Mixture(
            sparse=(True,) * fields.size("num_hidden_layers"),
            num_experts=fields.size("num_local_experts", 8),
            inner_size=fields.size("intermediate_size"),
            routing=SoftmaxTopK(fields.size("num_experts_per_tok", 2)),
            shared_size=fields.take("shared_intermediate_size", int, 0),
        )
        return granite_config(fields, architecture, mixture=mixture)
