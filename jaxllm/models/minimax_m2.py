"""MiniMax-M2 (MiniMax 2025): OLMoE's attention, partly turned, and experts chosen by sigmoid with a correction."""

from typing import ClassVar

from jaxllm.layers.moe import Mixture, SigmoidTopK
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mixtral import MixtralForCausalLM, MoEBlock
from jaxllm.models.olmoe import OlmoeAttention


class MiniMaxM2ForCausalLM(LlamaForCausalLM):
    block_class = MoEBlock
    attention_class = OlmoeAttention
    checkpoint_names: ClassVar[dict[str, Source]] = MixtralForCausalLM.checkpoint_names | {
        "layers.*.attention.q_norm.weight": Source.of("model.layers.*.self_attn.q_norm.weight"),
        "layers.*.attention.k_norm.weight": Source.of("model.layers.*.self_attn.k_norm.weight"),
        "layers.*.mlp.correction": Source.of("model.layers.*.block_sparse_moe.e_score_correction_bias"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        for name in ("use_mtp", "mtp_transformer_layers", "num_mtp_modules"):  # layers that draft
            fields.raw(name)
        fields.expect("attn_type_list", [1] * fields.size("num_hidden_layers"), None)
        fields.expect("qk_norm_type", "per_layer", None)
        fields.expect("scoring_func", "sigmoid", None)
        fields.expect("shared_intermediate_size", 0, None)
        fields.expect("use_qk_norm", True, None)
        fields.expect("use_routing_bias", True, None)
        head_dim = fields.size("head_dim", 128)
        mixture = Mixture(
            sparse=(True,) * fields.size("num_hidden_layers"),
            num_experts=fields.size("num_local_experts", 256),
            inner_size=fields.size("intermediate_size"),
            routing=SigmoidTopK(fields.size("num_experts_per_tok", 8)),
            correction=True,
        )
        return decoder_config(
            fields,
            architecture,
            head_dim=head_dim,
            eos_token_id=200020,
            rope_theta=5000000.0,
            partial_rotary_factor=fields.size("rotary_dim", head_dim) / head_dim,
            mixture=mixture,
        )

    def ignores_tensor(self, name: str) -> bool:
        return self.drafts(name) or super().ignores_tensor(name)
