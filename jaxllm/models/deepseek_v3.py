"""DeepSeek-V3 and R1 (DeepSeek-AI 2024): V2 with experts chosen by sigmoid and a learned correction."""

from typing import ClassVar

from jaxllm.layers.moe import SigmoidTopK
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig
from jaxllm.models.deepseek_v2 import DeepseekV2ForCausalLM, latent_config, read_mixture
from jaxllm.models.fields import Fields


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = DeepseekV2ForCausalLM.checkpoint_names | {
        "layers.*.mlp.correction": Source.of("model.layers.*.mlp.gate.e_score_correction_bias")
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        for name in ("num_nextn_predict_layers", "num_mtp_layers"):  # layers that draft, behind the model's own
            fields.raw(name)
        fields.expect("scoring_func", "sigmoid")
        fields.expect("topk_method", "noaux_tc")
        routing = SigmoidTopK(
            fields.size("num_experts_per_tok", 8),
            groups=fields.size("n_group", 8),
            top_groups=fields.size("topk_group", 4),
            normalised=fields.take("norm_topk_prob", bool, True),
            scale=fields.take("routed_scaling_factor", float, 2.5),
        )
        dense = fields.take("first_k_dense_replace", int, 3)
        mixture = read_mixture(fields, routing, dense=dense, correction=True)
        interleaved = fields.take("rope_interleave", bool, True)
        return latent_config(fields, architecture, mixture, interleaved=interleaved, eos_token_id=1)

    def ignores_tensor(self, name: str) -> bool:
        return self.drafts(name) or super().ignores_tensor(name)
