"""Falcon (Almazrouei et al. 2023) in its layouts: 7B, parallel with one key and value for all heads; 40B, 180B and 11B,
parallel with groups of heads; RW, one layer after the other with ALiBi."""

from typing import Any, ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.attention import slopes_of
from jaxllm.layers.mlp import MLP
from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.gpt_neox import HeadwiseAttention
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.parallel import ParallelBlock


class FalconForCausalLM(LlamaForCausalLM):
    block_class = ParallelBlock
    attention_class = HeadwiseAttention
    mlp_class = MLP
    checkpoint_prefix = "transformer."
    checkpoint_aliases: ClassVar[dict[str, str]] = {"input_layernorm": "ln_attn", "post_attention_layernorm": "ln_mlp"}
    checkpoint_ignored = (r"(rotary|rotary_emb|maybe_rotary)\.inv_freq$",)
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.word_embeddings.weight"),
        **norm_rows("layers.*.attention_norm", "transformer.h.*.input_layernorm"),
        **linear_rows("layers.*.attention.qkv", "transformer.h.*.self_attention.query_key_value"),
        **linear_rows("layers.*.attention.out", "transformer.h.*.self_attention.dense"),
        **norm_rows("layers.*.mlp_norm", "transformer.h.*.post_attention_layernorm"),
        **linear_rows("layers.*.mlp.up", "transformer.h.*.mlp.dense_h_to_4h"),
        **linear_rows("layers.*.mlp.down", "transformer.h.*.mlp.dense_4h_to_h"),
        **norm_rows("norm", "transformer.ln_f"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        grouped = fields.take("new_decoder_architecture", bool, "n_head_kv" in fields.values)
        fields.rename(
            n_embed="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads", n_head_kv="num_kv_heads",
            activation="hidden_act",
        )  # fmt: skip
        fields.expect("apply_residual_connection_post_layernorm", False)
        hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        fields.put("intermediate_size", fields.size("ffn_hidden_size", fields.size("ff_factor", 4) * hidden_size))
        fields.default(max_position_embeddings=2048)

        kv_heads = fields.size("num_kv_heads", num_heads)
        shared = fields.take("multi_query", bool, True)
        parallel = fields.take("parallel_attn", bool, True)
        norms = fields.size("num_ln_in_parallel_attn", 2 if grouped else 1)
        if grouped:
            fields.expect("parallel_attn", True)
            fields.expect("num_ln_in_parallel_attn", 1, 2, None)
        else:
            fields.expect("num_ln_in_parallel_attn", 1, None)
            kv_heads = 1 if shared else num_heads

        bias = fields.take("bias", bool, False)
        family: dict[str, Any] = {}
        if fields.take("alibi", bool, False):  # added to the scores before they are scaled
            if hidden_size < num_heads:
                raise ConfigError(
                    f"{fields.where}hidden_size={hidden_size} is less than num_attention_heads={num_heads}"
                )
            scale = (hidden_size // num_heads) ** -0.5
            family = {"rope": None, "alibi": tuple(slope * scale for slope in slopes_of(num_heads))}
        return decoder_config(
            fields,
            architecture,
            eos_token_id=11,
            tied=True,
            norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
            activation=fields.take("hidden_act", str, "gelu"),
            num_kv_heads=kv_heads,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bias,
            parallel_norms=norms if parallel else 0,
            **family,
        )
