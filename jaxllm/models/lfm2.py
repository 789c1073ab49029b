"""LFM2 (Liquid AI 2025): short gated convolutions with attention in some layers, and its mixtures of experts."""

from typing import Any, ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.moe import Mixture, SigmoidTopK
from jaxllm.layers.parameter import Source, linear_rows
from jaxllm.layers.ssm import ShortConv
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.hybrid import HybridForCausalLM
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mamba import convolution_names
from jaxllm.models.qwen3 import Qwen3Attention

_LAYER = "model.layers.*"
_EXPERTS = f"{_LAYER}.feed_forward.experts.*"


class Lfm2ForCausalLM(HybridForCausalLM):
    attention_class = Qwen3Attention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention_norm.weight": Source.of(f"{_LAYER}.operator_norm.weight"),
        "layers.*.attention.q_norm.weight": Source.of(f"{_LAYER}.self_attn.q_layernorm.weight"),
        "layers.*.attention.k_norm.weight": Source.of(f"{_LAYER}.self_attn.k_layernorm.weight"),
        "layers.*.attention.out.kernel": Source.linear(f"{_LAYER}.self_attn.out_proj.weight"),
        **linear_rows("layers.*.mamba.in_proj", f"{_LAYER}.conv.in_proj"),
        **convolution_names("layers.*.mamba.conv", f"{_LAYER}.conv.conv"),
        **linear_rows("layers.*.mamba.out_proj", f"{_LAYER}.conv.out_proj"),
        "layers.*.mlp_norm.weight": Source.of(f"{_LAYER}.ffn_norm.weight"),
        "layers.*.mlp.gate_up.kernel": Source.linear(
            f"{_LAYER}.feed_forward.w1.weight", f"{_LAYER}.feed_forward.w3.weight"
        ),
        "layers.*.mlp.down.kernel": Source.linear(f"{_LAYER}.feed_forward.w2.weight"),
        "norm.weight": Source.of("model.embedding_norm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        size = fields.size("hidden_size")
        for name in ("block_dim", "conv_dim", "conv_dim_out"):
            fields.expect(name, size)
        for name in ("block_use_swiglu", "use_pos_enc"):
            fields.expect(name, True)
        fields.expect("num_heads", fields.size("num_attention_heads"))
        fields.rename(block_ff_dim="intermediate_size")
        fields.put("intermediate_size", _adjusted(fields))
        fields.ignore("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init", "conv_use_xavier_init")
        return lfm2_config(fields, architecture)


class Lfm2MoeForCausalLM(Lfm2ForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = Lfm2ForCausalLM.checkpoint_names | {
        "layers.*.mlp.router.kernel": Source.linear(f"{_LAYER}.feed_forward.gate.weight"),
        "layers.*.mlp.correction": Source.of(f"{_LAYER}.feed_forward.expert_bias"),
        "layers.*.mlp.experts.gate_up": Source.linear(f"{_EXPERTS}.w1.weight", f"{_EXPERTS}.w3.weight"),
        "layers.*.mlp.experts.down": Source.linear(f"{_EXPERTS}.w2.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        dense = fields.take("num_dense_layers", int, 2)
        mixture = Mixture(
            sparse=tuple(layer >= dense for layer in range(fields.size("num_hidden_layers"))),
            num_experts=fields.size("num_experts", 32),
            inner_size=fields.size("moe_intermediate_size"),
            routing=SigmoidTopK(
                fields.size("num_experts_per_tok", 4),
                normalised=fields.take("norm_topk_prob", bool, True),
                scale=fields.take("routed_scaling_factor", float, 1.0),
            ),
            correction=fields.take("use_expert_bias", bool, True),
        )
        return lfm2_config(fields, architecture, mixture=mixture)


def lfm2_config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    """The fields that LFM2 and its mixtures share."""
    num_layers = fields.size("num_hidden_layers")
    fields.rename(tie_embedding="tie_word_embeddings", norm_eps="rms_norm_eps")
    fields.default(rms_norm_eps=1e-5)
    fields.expect("block_norm_eps", fields.raw("rms_norm_eps"))
    fields.expect("theta", fields.raw("rope_theta"))
    attends = fields.take_list("full_attn_idxs", int, list(range(num_layers)))
    types = fields.take_list("layer_types", str, None)
    if types is None:
        types = ["full_attention" if layer in attends else "conv" for layer in range(num_layers)]
    if len(types) != num_layers or not set(types) <= {"conv", "full_attention"}:
        raise ConfigError(f"{fields.where}layer_types must hold {num_layers} times conv or full_attention, not {types}")
    return decoder_config(
        fields,
        architecture,
        eos_token_id=2,
        tied=True,
        rope_theta=1e6,
        state_space=ShortConv(conv_size=fields.size("conv_L_cache", 3), bias=fields.take("conv_bias", bool, False)),
        recurrent=tuple(kind == "conv" for kind in types),
        **family,
    )


def _adjusted(fields: Fields) -> int:
    """The MLPs' inner size: two thirds of what the file says, times a factor, rounded up to a multiple, if asked."""
    fields.default_nullable(block_ffn_dim_multiplier=1.0)  # null is not to round
    size, multiple = fields.size("intermediate_size"), fields.size("block_multiple_of", 256)
    factor = fields.positive("block_ffn_dim_multiplier", None)
    if not fields.take("block_auto_adjust_ff_dim", bool, True):
        return int(size)
    size = int(2 * size / 3)
    if factor is None:
        return size
    return int(multiple * -(-int(factor * size) // multiple))
