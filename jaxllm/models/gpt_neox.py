"""GPT-NeoX (Black et al. 2022), Pythia, Dolly, RedPajama: parallel blocks as a rule, a norm for each half of them, part
of each head turned, queries, keys and values fused head by head."""

from dataclasses import replace
from typing import ClassVar

import jax

from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import MLP
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.parallel import ParallelBlock


class HeadwiseAttention(LlamaAttention):
    """Its fused projection holds, one key/value head after another, the head's queries, its key and its value."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.num_kv_heads = config.num_kv_heads
        self.qkv = Linear(
            config.hidden_size, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim, dtype,
            axes=("embed", "qkv"), bias=config.qkv_bias, std=config.initializer_range,
        )  # fmt: skip

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        groups = self.qkv(x).reshape(x.shape[0], self.num_kv_heads, -1, self.head_dim)
        return groups[:, :, :-2].reshape(x.shape[0], -1, self.head_dim), groups[:, :, -2], groups[:, :, -1]


class GPTNeoXForCausalLM(LlamaForCausalLM):
    block_class = ParallelBlock
    attention_class = HeadwiseAttention
    mlp_class = MLP
    checkpoint_prefix = ""
    checkpoint_aliases: ClassVar[dict[str, str]] = {"embed_out": "lm_head"}  # as transformers 5 keeps it
    checkpoint_ignored = (r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",)  # the causal mask of old files
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("gpt_neox.embed_in.weight"),
        **norm_rows("layers.*.attention_norm", "gpt_neox.layers.*.input_layernorm"),
        **linear_rows("layers.*.attention.qkv", "gpt_neox.layers.*.attention.query_key_value"),
        **linear_rows("layers.*.attention.out", "gpt_neox.layers.*.attention.dense"),
        **norm_rows("layers.*.mlp_norm", "gpt_neox.layers.*.post_attention_layernorm"),
        **linear_rows("layers.*.mlp.up", "gpt_neox.layers.*.mlp.dense_h_to_4h"),
        **linear_rows("layers.*.mlp.down", "gpt_neox.layers.*.mlp.dense_4h_to_h"),
        **norm_rows("norm", "gpt_neox.final_layer_norm"),
        "head.kernel": Source.linear("embed_out.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        bias = fields.take("attention_bias", bool, True)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            rope_theta=fields.take("rotary_emb_base", float, 10000.0),
            partial_rotary_factor=fields.take("rotary_pct", float, 0.25),
            norm_eps=fields.take("layer_norm_eps", float, 1e-5),
            activation=fields.take("hidden_act", str, "gelu"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=True,
            parallel_norms=2 if fields.take("use_parallel_residual", bool, True) else 0,
        )


class JapaneseAttention(HeadwiseAttention):
    """Only the last layer's output has a bias."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(replace(config, out_bias=layer == config.num_layers - 1), layer, dtype)


class GPTNeoXJapaneseForCausalLM(GPTNeoXForCausalLM):
    """GPT-NeoX Japanese (ABEJA 2022): one half of a block after the other, whole heads turned, hardly a bias."""

    attention_class = JapaneseAttention
    checkpoint_names: ClassVar[dict[str, Source]] = {
        name: Source(tuple(part.replace("gpt_neox.", "gpt_neox_japanese.") for part in source.names), source.layout)
        for name, source in GPTNeoXForCausalLM.checkpoint_names.items()
    } | {"layers.*.attention.out.bias": Source.of("gpt_neox_japanese.layers.*.attention.dense_bias")}

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        inner_size = fields.size("hidden_size") * fields.size("intermediate_multiple_size", 4)
        fields.put("intermediate_size", inner_size)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=31999,
            tied=True,
            rope_theta=fields.take("rotary_emb_base", float, 10000.0),
            partial_rotary_factor=fields.take("rotary_pct", float, 1.0),
            norm_eps=fields.take("layer_norm_eps", float, 1e-5),
            activation=fields.take("hidden_act", str, "gelu"),
        )
