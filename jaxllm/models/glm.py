"""GLM-4 (GLM team 2024) and GLM-4-0414 (2025): half of each head turned, pair by neighbouring pair; biases on qkv.

The second also normalises what a block adds.
"""

from typing import ClassVar

from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.gemma import SandwichBlock
from jaxllm.models.llama import LlamaForCausalLM


class GlmForCausalLM(LlamaForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.mlp.gate_up.kernel": Source.linear("model.layers.*.mlp.gate_up_proj.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1.5625e-07)
        return decoder_config(
            fields,
            architecture,
            head_dim=128,
            eos_token_id=[151329, 151336, 151338],
            partial_rotary_factor=0.5,
            interleaved=True,
            qkv_bias=fields.take("attention_bias", bool, True),
        )


class Glm4ForCausalLM(GlmForCausalLM):
    block_class = SandwichBlock
    checkpoint_names: ClassVar[dict[str, Source]] = GlmForCausalLM.checkpoint_names | {
        "layers.*.attention_out_norm.weight": Source.of("model.layers.*.post_self_attn_layernorm.weight"),
        "layers.*.mlp_out_norm.weight": Source.of("model.layers.*.post_mlp_layernorm.weight"),
    }
