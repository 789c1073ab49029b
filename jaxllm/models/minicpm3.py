"""MiniCPM3 (OpenBMB 2024): MiniCPM with DeepSeek-V2's latent attention."""

from dataclasses import replace

from jaxllm.models.config import ModelConfig
from jaxllm.models.deepseek_v2 import DeepseekV2ForCausalLM, latent_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaBlock
from jaxllm.models.llama_kin import read_scales


class MiniCPM3ForCausalLM(DeepseekV2ForCausalLM):
    block_class = LlamaBlock

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5, tie_word_embeddings=True)
        fields.default(v_head_dim=fields.size("hidden_size") // fields.size("num_attention_heads"))
        scales = read_scales(fields, embed=12.0, depth=1.4, base=256)
        config = latent_config(fields, architecture, None, interleaved=False, eos_token_id=2)
        return replace(config, embed_scale_rounded=True, **scales)
