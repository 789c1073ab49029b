"""Qwen1.5-MoE and Qwen2-MoE (Qwen team 2024), Qwen3-MoE (2025): Qwen2 and Qwen3 with mixtures of experts.

Qwen2's have an expert that sees every token, behind a gate of its own. Mellum 2 (JetBrains 2026) is Qwen3-MoE with
windows on some layers, which turn by a base of their own.
"""

from typing import ClassVar

from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, with_local_rope
from jaxllm.models.fields import Fields
from jaxllm.models.glm4_moe import read_sparse
from jaxllm.models.mixtral import MoEBlock, expert_names
from jaxllm.models.qwen2 import Qwen2ForCausalLM
from jaxllm.models.qwen3 import Qwen3ForCausalLM

_EXPERTS = expert_names("mlp", "gate_proj", "up_proj", "down_proj")


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = (
        Qwen2ForCausalLM.checkpoint_names
        | _EXPERTS
        | {
            "layers.*.mlp.shared.gate_up.kernel": Source.linear(
                "model.layers.*.mlp.shared_expert.gate_proj.weight", "model.layers.*.mlp.shared_expert.up_proj.weight"
            ),
            "layers.*.mlp.shared.down.kernel": Source.linear("model.layers.*.mlp.shared_expert.down_proj.weight"),
            "layers.*.mlp.shared_gate.kernel": Source.linear("model.layers.*.mlp.shared_expert_gate.weight"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        num_layers = fields.size("num_hidden_layers")
        mixture = read_mixture(
            fields, shared_size=fields.size("shared_expert_intermediate_size", 5632), shared_gate=True
        )
        window = _read_window(fields)
        first_full = fields.take("max_window_layers", int, 28)
        windows = read_layer_types(fields, num_layers, window, 2)
        if fields.raw("layer_types") is None:
            windows = tuple(window if layer < first_full else None for layer, window in enumerate(windows))
        bias = fields.take("qkv_bias", bool, True)
        return decoder_config(fields, architecture, windows=windows, qkv_bias=bias, mixture=mixture)


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    block_class = MoEBlock
    checkpoint_names: ClassVar[dict[str, Source]] = Qwen3ForCausalLM.checkpoint_names | _EXPERTS

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        mixture = read_mixture(fields)
        windows = (_read_window(fields),) * fields.size("num_hidden_layers")
        fields.raw("max_window_layers")  # Qwen3-MoE's windows are on every layer or on none
        fields.expect("qkv_bias", False, None)
        fields.expect("use_qk_norm", True, None)
        fields.expect("shared_expert_intermediate_size", 0, None)
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(fields, architecture, windows=windows, qkv_bias=bias, out_bias=bias, mixture=mixture)


class MellumForCausalLM(Qwen3MoeForCausalLM):
    checkpoint_ignored = (*Qwen3MoeForCausalLM.checkpoint_ignored, r"^mtp\.")

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        # Layers that draft, which are not loaded.
        fields.ignore("mtp_layer_types", "mtp_mlp_layer_types", "num_mtp_layers", "num_nextn_predict_layers")
        fields.default(norm_topk_prob=True)
        mixture = read_sparse(fields, read_mixture(fields))
        num_layers, window = fields.size("num_hidden_layers"), fields.size("sliding_window", 1024)
        windows = (None,) * num_layers
        if fields.values.get("layer_types") is not None:
            windows = read_layer_types(fields, num_layers, window, period=0)
        bias = fields.take("attention_bias", bool, False)
        config = decoder_config(
            fields, architecture, head_dim=128, rope_theta=500000.0, windows=windows, qkv_bias=bias, out_bias=bias,
            mixture=mixture,
        )  # fmt: skip
        return with_local_rope(config, fields, 10000.0)


def read_mixture(fields: Fields, *, shared_size: int = 0, shared_gate: bool = False) -> Mixture:
    """The mixture as Qwen's files give it, with the family's shared expert."""
    dense = fields.take_list("mlp_only_layers", int, [])
    every = fields.size("decoder_sparse_step", 1)
    newer = fields.size("num_local_experts", None)  # as transformers 5 writes it
    num_experts = newer or fields.size("num_experts")
    normalised = fields.take("norm_topk_prob", bool, False)
    return Mixture(
        sparse=tuple(
            layer not in dense and (layer + 1) % every == 0 for layer in range(fields.size("num_hidden_layers"))
        ),
        num_experts=num_experts,
        inner_size=fields.size("moe_intermediate_size"),
        routing=SoftmaxTopK(fields.size("num_experts_per_tok"), norm=1.0 if normalised else None),
        shared_size=shared_size,
        shared_gate=shared_gate,
    )


def _read_window(fields: Fields) -> int | None:
    if fields.take("use_sliding_window", bool, False):
        window: int = fields.size("sliding_window", 4096)
        return window
    fields.raw("sliding_window")
    return None
