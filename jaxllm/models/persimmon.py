"""Persimmon (Adept 2023): GPT-NeoX's projections and LayerNorms in Llama's order, queries and keys normalised, squared
rectifiers."""

from typing import ClassVar

from jaxllm.layers.mlp import MLP
from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.gpt_neox import HeadwiseAttention
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.phi import PhiAttention
from jaxllm.models.starcoder2 import Starcoder2Block


class PersimmonAttention(HeadwiseAttention, PhiAttention):
    """Projections as the one, norms as the other."""


class PersimmonForCausalLM(LlamaForCausalLM):
    block_class = Starcoder2Block
    attention_class = PersimmonAttention
    mlp_class = MLP
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.embed_tokens.weight"),
        **norm_rows("layers.*.attention_norm", "model.layers.*.input_layernorm"),
        **linear_rows("layers.*.attention.qkv", "model.layers.*.self_attn.query_key_value"),
        **norm_rows("layers.*.attention.q_norm", "model.layers.*.self_attn.q_layernorm"),
        **norm_rows("layers.*.attention.k_norm", "model.layers.*.self_attn.k_layernorm"),
        **linear_rows("layers.*.attention.out", "model.layers.*.self_attn.dense"),
        **norm_rows("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm"),
        **linear_rows("layers.*.mlp.up", "model.layers.*.mlp.dense_h_to_4h"),
        **linear_rows("layers.*.mlp.down", "model.layers.*.mlp.dense_4h_to_h"),
        **norm_rows("norm", "model.final_layernorm"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            partial_rotary_factor=0.5,
            norm_eps=fields.take("layer_norm_eps", float, 1e-5),
            activation=fields.take("hidden_act", str, "relu2"),
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            qk_norm=fields.take("qk_layernorm", bool, True),
        )
