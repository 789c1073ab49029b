"""GLM-4.5 and 4.6 (GLM team 2025): small experts chosen by sigmoid with a learned correction, as in DeepSeek-V3."""

from dataclasses import replace
from typing import ClassVar

import jax

from jaxllm.errors import ConfigError
from jaxllm.layers.attention import Placement
from jaxllm.layers.moe import Mixture, SigmoidTopK
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.rope import Rotation
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.deepseek import EXPERT_NAMES
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock
from jaxllm.models.qwen3 import Qwen3ForCausalLM


class Glm4MoeAttention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, dtype) if config.qk_norm else None

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        q, k, placement = super().place(q, k, rotation)
        if self.q_norm is not None and self.k_norm is not None:
            placement = placement.normed(self.q_norm, self.k_norm)
        return q, k, placement


class Glm4MoeForCausalLM(LlamaForCausalLM):
    block_class = MoEBlock
    attention_class: ClassVar[type[LlamaAttention]] = Glm4MoeAttention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        Qwen3ForCausalLM.checkpoint_names
        | EXPERT_NAMES
        | {"layers.*.mlp.correction": Source.of("model.layers.*.mlp.gate.e_score_correction_bias")}
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        mixture = read_mixture(fields, dense=fields.take("first_k_dense_replace", int, 1))
        return decoder_config(
            fields,
            architecture,
            partial_rotary_factor=0.5,
            qkv_bias=fields.take("attention_bias", bool, False),
            qk_norm=fields.take("use_qk_norm", bool, False),
            mixture=mixture,
        )

    def ignores_tensor(self, name: str) -> bool:
        return self.drafts(name) or super().ignores_tensor(name)


def read_mixture(fields: Fields, *, dense: int) -> Mixture:
    """The mixture as GLM's files give it, in all layers but the first `dense`."""
    for name in ("num_nextn_predict_layers", "num_mtp_layers"):  # layers that draft, behind the model's own
        fields.raw(name)
    inner_size = fields.size("moe_intermediate_size", 1408)
    num_experts = fields.size("num_local_experts", None) or fields.size("n_routed_experts", 128)
    return Mixture(
        sparse=tuple(layer >= dense for layer in range(fields.size("num_hidden_layers"))),
        num_experts=num_experts,
        inner_size=inner_size,
        routing=SigmoidTopK(
            fields.size("num_experts_per_tok", 8),
            groups=fields.size("n_group", 1),
            top_groups=fields.size("topk_group", 1),
            normalised=fields.take("norm_topk_prob", bool, True),
            scale=fields.take("routed_scaling_factor", float, 1.0),
        ),
        shared_size=inner_size * fields.take("n_shared_experts", int, 1),
        correction=True,
    )


def read_sparse(fields: Fields, mixture: Mixture) -> Mixture:
    """The mixture in the layers that mlp_layer_types calls sparse, where the file has that field."""
    kinds = fields.take_list("mlp_layer_types", str, None)
    if kinds is None:
        return mixture
    num_layers = fields.size("num_hidden_layers")
    if len(kinds) != num_layers or not set(kinds) <= {"dense", "sparse"}:
        raise ConfigError(f"{fields.where}mlp_layer_types must hold {num_layers} times dense or sparse")
    return replace(mixture, sparse=tuple(kind == "sparse" for kind in kinds))
