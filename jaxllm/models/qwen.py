"""Qwen, the first generation (Bai et al. 2023): Qwen2 in GPT-2's words."""

from typing import ClassVar

from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM

_LAYER = "transformer.h.*"
_OF_NO_EFFECT = (
    "activation", "bias_dropout_fusion", "bf16", "emb_dropout_prob", "attn_dropout_prob", "ffn_inter_padding_size",
    "fp16", "fp32", "onnx_safe", "padded_vocab_size", "params_dtype", "pos_emb", "softmax_in_fp32", "tokenizer_type",
    "use_cache_kernel", "use_cache_quantization", "use_flash_attn",
)  # fmt: skip
"""How numbers are computed, or what other fields say."""


class QWenLMHeadModel(LlamaForCausalLM):
    checkpoint_prefix = "transformer."
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.wte.weight"),
        **norm_rows("layers.*.attention_norm", f"{_LAYER}.ln_1"),
        **linear_rows("layers.*.attention.qkv", f"{_LAYER}.attn.c_attn"),
        **linear_rows("layers.*.attention.out", f"{_LAYER}.attn.c_proj"),
        **norm_rows("layers.*.mlp_norm", f"{_LAYER}.ln_2"),
        **linear_rows("layers.*.mlp.gate_up", f"{_LAYER}.mlp.w2", f"{_LAYER}.mlp.w1"),
        **linear_rows("layers.*.mlp.down", f"{_LAYER}.mlp.c_proj"),
        **norm_rows("norm", "transformer.ln_f"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.ignore(*_OF_NO_EFFECT)
        fields.rename(
            n_embd="hidden_size", n_head="num_attention_heads", n_layer="num_hidden_layers", kv_channels="head_dim",
            n_positions="max_position_embeddings", layer_norm_epsilon="rms_norm_eps",
        )  # fmt: skip
        if "ffn_hidden_size" in fields.values:
            fields.put("intermediate_size", 2 * fields.size("ffn_hidden_size"))
        fields.put("intermediate_size", fields.size("intermediate_size") // 2)  # they count gate and up together
        # Beyond the length of training queries and rotations would grow, by logn and dynamic NTK: not served.
        trained = fields.size("seq_length", fields.size("max_position_embeddings", 8192))
        fields.put("max_position_embeddings", trained)
        fields.raw("use_dynamic_ntk")
        fields.raw("use_logn_attn")
        fields.expect("apply_residual_connection_post_layernorm", False, None)
        fields.expect("no_bias", True, None)
        fields.expect("rotary_pct", 1, None)
        fields.expect("scale_attn_weights", True, None)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=151643,
            rope_theta=fields.take("rotary_emb_base", float, 10000.0),
            qkv_bias=True,
        )
