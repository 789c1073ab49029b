"""DeepSeek, the first generation (DeepSeek-AI 2024, DeepSeekMoE): Llama with small experts, some for every token."""

from typing import ClassVar

from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock, expert_names

EXPERT_NAMES: dict[str, Source] = expert_names("mlp", "gate_proj", "up_proj", "down_proj") | {
    "layers.*.mlp.shared.gate_up.kernel": Source.linear(
        "model.layers.*.mlp.shared_experts.gate_proj.weight", "model.layers.*.mlp.shared_experts.up_proj.weight"
    ),
    "layers.*.mlp.shared.down.kernel": Source.linear("model.layers.*.mlp.shared_experts.down_proj.weight"),
}


class DeepseekForCausalLM(LlamaForCausalLM):
    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | EXPERT_NAMES

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        mixture = read_mixture(fields, normalised=False)
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(fields, architecture, eos_token_id=100001, qkv_bias=bias, out_bias=bias, mixture=mixture)


def read_mixture(fields: Fields, *, normalised: bool) -> Mixture:
    """The mixture as the first DeepSeek's files give it. normalised: where the file does not say."""
    fields.expect("scoring_func", "softmax")
    for name in ("aux_loss_alpha", "seq_aux"):  # of the training's loss
        fields.raw(name)
    dense, every = fields.take("first_k_dense_replace", int, 0), fields.size("moe_layer_freq", 1)
    inner_size = fields.size("moe_intermediate_size", 1407)
    normalised = fields.take("norm_topk_prob", bool, normalised)
    return Mixture(
        sparse=tuple(layer >= dense and layer % every == 0 for layer in range(fields.size("num_hidden_layers"))),
        num_experts=fields.size("n_routed_experts"),
        inner_size=inner_size,
        routing=SoftmaxTopK(fields.size("num_experts_per_tok"), norm=1.0 if normalised else None),
        shared_size=inner_size * (fields.size("n_shared_experts", None) or 0),
    )
