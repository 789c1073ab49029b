"""DeepSeek-V3's attention around other MLPs: GLM-4.7-Flash (Z.ai 2026), Youtu-LLM (Tencent 2026)."""

from jaxllm.models import glm4_moe
from jaxllm.models.config import ModelConfig
from jaxllm.models.deepseek_v2 import latent_config
from jaxllm.models.deepseek_v3 import DeepseekV3ForCausalLM
from jaxllm.models.fields import Fields


class Glm4MoeLiteForCausalLM(DeepseekV3ForCausalLM):
    """GLM-4.5's experts."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("topk_method", "noaux_tc", None)
        fields.expect("scoring_func", "sigmoid", None)
        fields.default(
            rms_norm_eps=1e-5, routed_scaling_factor=1.8, n_routed_experts=64, num_experts_per_tok=4,
            moe_intermediate_size=1536,
        )  # fmt: skip
        mixture = glm4_moe.read_mixture(fields, dense=fields.take("first_k_dense_replace", int, 1))
        mixture = glm4_moe.read_sparse(fields, mixture)
        interleaved = fields.take("rope_interleave", bool, True)
        return latent_config(fields, architecture, mixture, interleaved=interleaved, eos_token_id=1)


class YoutuForCausalLM(DeepseekV3ForCausalLM):
    """No experts."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.raw("embedding_initializer_range")
        fields.default(tie_word_embeddings=True)
        interleaved = fields.take("rope_interleave", bool, True)
        return latent_config(fields, architecture, None, interleaved=interleaved, eos_token_id=128001)
