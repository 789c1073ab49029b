"""Hunyuan (Tencent 2024, 2025), dense and with mixtures: queries and keys are normalised after they are turned."""

from typing import Any, ClassVar

import jax

from jaxllm.errors import ConfigError
from jaxllm.layers.attention import Placement
from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Source
from jaxllm.layers.rope import Rotation
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock, expert_names
from jaxllm.models.qwen3 import Qwen3Attention

_WITHOUT_USE = (
    "cla_share_factor", "class_num", "dense_list", "eod_token_id", "im_end_id", "im_newline_id", "im_start_id",
    "mask_init_id", "org_vocab_size", "pad_id", "pool_type", "text_end_id", "text_start_id",
)  # fmt: skip
"""Fields of other models that share the program, and ids the tokenizer knows."""


class HunYuanAttention(Qwen3Attention):
    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        _, _, turned = LlamaAttention.place(self, q, k, rotation)
        q, k = turned(q, k)
        return super().place(q, k, None)


class HunYuanDenseV1ForCausalLM(LlamaForCausalLM):
    attention_class = HunYuanAttention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention.q_norm.weight": Source.of("model.layers.*.self_attn.query_layernorm.weight"),
        "layers.*.attention.k_norm.weight": Source.of("model.layers.*.self_attn.key_layernorm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return _config(fields, architecture)


class HunYuanMoEV1ForCausalLM(HunYuanDenseV1ForCausalLM):
    """A mixture in every layer, its shared expert as large as the others."""

    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = (
        HunYuanDenseV1ForCausalLM.checkpoint_names
        | expert_names("mlp", "gate_proj", "up_proj", "down_proj")
        | {
            "layers.*.mlp.router.kernel": Source.linear("model.layers.*.mlp.gate.wg.weight"),
            "layers.*.mlp.shared.gate_up.kernel": Source.linear(
                "model.layers.*.mlp.shared_mlp.gate_proj.weight", "model.layers.*.mlp.shared_mlp.up_proj.weight"
            ),
            "layers.*.mlp.shared.down.kernel": Source.linear("model.layers.*.mlp.shared_mlp.down_proj.weight"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        num_layers, inner_size = fields.size("num_hidden_layers"), fields.size("intermediate_size")
        for name in ("capacity_factor", "moe_drop_tokens", "moe_random_routing_dropped_token"):  # of training
            fields.raw(name)
        fields.expect("use_mixed_mlp_moe", True, None)
        fields.expect("moe_layer_num_skipped", 0, None)
        fields.expect("group_limited_greedy", False, None)
        fields.expect("norm_topk_prob", True, None)
        inner_size = _one_for_all(fields, "moe_intermediate_size", num_layers, inner_size)
        mixture = Mixture(
            sparse=(True,) * num_layers,
            num_experts=_one_for_all(fields, "num_experts", num_layers, 1),
            inner_size=inner_size,
            routing=SoftmaxTopK(_one_for_all(fields, "moe_topk", num_layers, 1)),
            shared_size=inner_size * _one_for_all(fields, "num_shared_expert", num_layers, 1),
        )
        return _config(fields, architecture, mixture=mixture)


def _config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    fields.default(rms_norm_eps=1e-5)
    for name in _WITHOUT_USE:
        fields.raw(name)
    fields.rename(attention_head_dim="head_dim")
    fields.expect("add_classification_head", False, None)
    fields.expect("mlp_bias", False, None)
    fields.expect("norm_type", "rms", "hf_rms", None)
    fields.expect("use_cla", False, None)
    fields.expect("use_qk_norm", True, None)
    fields.expect("use_rotary_pos_emb", True, None)
    bias = fields.take("attention_bias", bool, False)
    return decoder_config(fields, architecture, eos_token_id=2, qkv_bias=bias, out_bias=bias, **family)


def _one_for_all(fields: Fields, name: str, num_layers: int, default: int) -> int:
    """A number, or a list that gives it to every layer."""
    value = fields.raw(name, default)
    number, *others = value if isinstance(value, list) and len(value) == num_layers else [value]
    if type(number) is not int or number < 1 or any(other != number for other in others):
        raise ConfigError(f"{fields.where}{name}={value!r} must be a positive number, the same for every layer")
    return number
