"""StarCoder2 (Lozhkov et al. 2024): Llama with LayerNorm, an ungated MLP, biases and, as a rule, a window."""

from typing import ClassVar

from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaBlock, LlamaForCausalLM


class Starcoder2Block(LlamaBlock):
    norm_class = LayerNorm


class Starcoder2ForCausalLM(LlamaForCausalLM):
    block_class = Starcoder2Block
    mlp_class = MLP
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        **norm_rows("layers.*.attention_norm", "model.layers.*.input_layernorm"),
        **norm_rows("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm"),
        **linear_rows("layers.*.mlp.up", "model.layers.*.mlp.c_fc"),
        **linear_rows("layers.*.mlp.down", "model.layers.*.mlp.c_proj"),
        **norm_rows("norm", "model.norm"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("mlp_type", "default")
        fields.expect("norm_type", "layer_norm")
        fields.expect("scale_attn_weights", True)
        for name in ("activation_function", "layer_norm_epsilon"):  # hidden_act and norm_epsilon are what is read
            fields.raw(name)
        for name in ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"):  # it always is
            fields.raw(name)
        bias = fields.take("use_bias", bool, True)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=50256,
            tied=True,
            norm_eps=fields.take("norm_epsilon", float, 1e-5),
            activation=fields.take("hidden_act", str, "gelu_pytorch_tanh"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bias,
            windows=(fields.size("sliding_window", None),) * fields.size("num_hidden_layers"),
        )
