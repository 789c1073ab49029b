"""Phi-3, Phi-3.5 and Phi-4 (Microsoft 2024): Llama from fused tensors, LongRoPE, and heads turned in part."""

from typing import ClassVar

from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM


class Phi3ForCausalLM(LlamaForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention.qkv.kernel": Source.linear("model.layers.*.self_attn.qkv_proj.weight"),
        "layers.*.mlp.gate_up.kernel": Source.linear("model.layers.*.mlp.gate_up_proj.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5, original_max_position_embeddings=4096)
        for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
            fields.expect(name, False, None)
        for name in ("full_attn_mod", "interpolate_factor"):
            fields.expect(name, 1, None)
        fields.raw("original_max_position_embeddings")  # of LongRoPE; the same as max_position_embeddings without
        windows = (fields.size("sliding_window", None),) * fields.size("num_hidden_layers")
        return decoder_config(fields, architecture, eos_token_id=32000, partial_rotary_factor=1.0, windows=windows)
