"""ChatGLM2, ChatGLM3 and GLM-4-9B (Zeng et al. 2024) as first published: GLM-4 in Megatron's words."""

from typing import ClassVar

from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM

_LAYER = "transformer.encoder.layers.*"
_OF_NO_EFFECT = (
    "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "bias_dropout_fusion", "fp32_residual_connection",
    "original_rope", "prefix_projection", "quantization_bit",
)  # fmt: skip
"""How numbers are rounded, or what fine-tuning adds."""


class ChatGLMModel(LlamaForCausalLM):
    checkpoint_prefix = ""
    checkpoint_ignored: ClassVar[tuple[str, ...]] = (r"rotary_pos_emb\.inv_freq$",)
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.embedding.word_embeddings.weight"),
        **norm_rows("layers.*.attention_norm", f"{_LAYER}.input_layernorm"),
        **linear_rows("layers.*.attention.qkv", f"{_LAYER}.self_attention.query_key_value"),
        **linear_rows("layers.*.attention.out", f"{_LAYER}.self_attention.dense"),
        **norm_rows("layers.*.mlp_norm", f"{_LAYER}.post_attention_layernorm"),
        **linear_rows("layers.*.mlp.gate_up", f"{_LAYER}.mlp.dense_h_to_4h"),
        **linear_rows("layers.*.mlp.down", f"{_LAYER}.mlp.dense_4h_to_h"),
        **norm_rows("norm", "transformer.encoder.final_layernorm"),
        "head.kernel": Source.linear("transformer.output_layer.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.ignore(*_OF_NO_EFFECT)
        fields.expect("apply_residual_connection_post_layernorm", False, None)
        fields.expect("post_layer_norm", True, None)
        fields.expect("pre_seq_len", None)
        fields.expect("rmsnorm", True, None)
        heads = fields.size("num_attention_heads")
        groups = fields.size("multi_query_group_num", heads)
        if not fields.take("multi_query_attention", bool, False):
            groups = heads
        fields.put("num_key_value_heads", groups)
        fields.rename(
            padded_vocab_size="vocab_size", num_layers="num_hidden_layers", ffn_hidden_size="intermediate_size",
            kv_channels="head_dim", seq_length="max_position_embeddings", layernorm_epsilon="rms_norm_eps",
        )  # fmt: skip
        bias = fields.take("add_bias_linear", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            rope_theta=10000.0 * fields.take("rope_ratio", float, 1.0),
            partial_rotary_factor=0.5,
            interleaved=True,
            qkv_bias=bias or fields.take("add_qkv_bias", bool, False),
            out_bias=bias,
            mlp_bias=bias,
        )
