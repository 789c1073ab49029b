"""Nemotron-4 and Minitron (Parmar et al. 2024): Llama with LayerNorms whose weights are kept less one, an ungated MLP
of squared rectifiers, and half of each head turned; and Jais 2 (Inception 2025), which has plain LayerNorms, biases and
turns whole heads."""

from typing import ClassVar

from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import UnitOffsetLayerNorm
from jaxllm.layers.parameter import Source, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaBlock, LlamaForCausalLM
from jaxllm.models.llama_kin import OrionBlock


class NemotronBlock(LlamaBlock):
    norm_class = UnitOffsetLayerNorm


class NemotronForCausalLM(LlamaForCausalLM):
    block_class: ClassVar[type[LlamaBlock]] = NemotronBlock
    mlp_class = MLP
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        **norm_rows("layers.*.attention_norm", "model.layers.*.input_layernorm"),
        **norm_rows("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm"),
        "layers.*.mlp.up.kernel": Source.linear("model.layers.*.mlp.up_proj.weight"),
        "layers.*.mlp.up.bias": Source.of("model.layers.*.mlp.up_proj.bias"),
        **norm_rows("norm", "model.norm"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(
            rope_percent="partial_rotary_factor", rope_percentage="partial_rotary_factor", kv_channels="head_dim"
        )  # fmt: skip
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=3,
            partial_rotary_factor=0.5,
            norm_eps=fields.take("norm_eps", float, 1e-5),
            activation=fields.take("hidden_act", str, "relu2"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, False),
        )


class Jais2ForCausalLM(NemotronForCausalLM):
    block_class = OrionBlock

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        bias = fields.take("attention_bias", bool, True)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=150024,
            norm_eps=fields.take("layer_norm_eps", float, 1e-5),
            activation=fields.take("hidden_act", str, "relu2"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, True),
        )
