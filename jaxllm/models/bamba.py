"""Bamba (IBM, Princeton and UIUC 2024): Mamba 2 with attention in a few layers, half of whose heads turn."""

from typing import ClassVar

from jaxllm.layers.parameter import Source, linear_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.hybrid import HybridForCausalLM
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mamba import TRAINING, read_activation
from jaxllm.models.mamba2 import mamba2_names, read_mamba2

_LAYER = "model.layers.*"

FEED_FORWARD = {
    "layers.*.mlp_norm.weight": Source.of(f"{_LAYER}.pre_ff_layernorm.weight"),
    **linear_rows("layers.*.mlp.gate_up", f"{_LAYER}.feed_forward.gate_proj", f"{_LAYER}.feed_forward.up_proj"),
    **linear_rows("layers.*.mlp.down", f"{_LAYER}.feed_forward.down_proj"),
    "norm.weight": Source.of("model.final_layernorm.weight"),
}
"""What Jamba and its kin call MLPs and the last norm."""


class BambaForCausalLM(HybridForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **LlamaForCausalLM.checkpoint_names,
        **FEED_FORWARD,
        **mamba2_names("layers.*.mamba", f"{_LAYER}.mamba"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        num_layers, bias = fields.size("num_hidden_layers"), fields.take("attention_bias", bool, False)
        attends = fields.take_list("attn_layer_indices", int, [])
        fields.ignore(*TRAINING)
        read_activation(fields)
        config = decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            partial_rotary_factor=0.5,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, False),
            state_space=read_mamba2(fields),
            recurrent=tuple(layer not in attends for layer in range(num_layers)),
        )
        assert config.rope is not None
        fields.expect("attn_rotary_emb", config.rope.head_dim, None)  # the turned part of a head, in features
        return config
