"""GLM-4.5's experts around other attention: dots.llm1 (Xiaohongshu 2025), Solar Open (Upstage 2025), K-EXAONE (LG AI
Research 2025), Hy3 (Tencent 2026)."""

from typing import ClassVar

from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, without_global_rope
from jaxllm.models.exaone import read_period
from jaxllm.models.fields import Fields
from jaxllm.models.glm4_moe import Glm4MoeForCausalLM, read_mixture, read_sparse
from jaxllm.models.llama import LlamaAttention
from jaxllm.models.qwen3 import Qwen3Attention


class Dots1ForCausalLM(Glm4MoeForCausalLM):
    """Qwen3's attention."""

    attention_class = Qwen3Attention

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(n_shared_experts=0, norm_topk_prob=False)
        fields.default_nullable(sliding_window=4096)
        fields.expect("scoring_func", "sigmoid", "noaux_tc", None)  # a sigmoid by both names
        fields.expect("topk_method", "noaux_tc", None)
        fields.expect("moe_layer_freq", 1, None)
        num_layers, window = fields.size("num_hidden_layers"), fields.size("sliding_window", None)
        first = fields.take("max_window_layers", int, 62)
        windows = tuple(window if layer >= first else None for layer in range(num_layers))
        if fields.values.get("layer_types") is not None:
            windows = read_layer_types(fields, num_layers, window, period=0)
        bias = fields.take("attention_bias", bool, False)
        mixture = read_mixture(fields, dense=fields.take("first_k_dense_replace", int, 0))
        return decoder_config(fields, architecture, windows=windows, qkv_bias=bias, out_bias=bias, mixture=mixture)


class SolarOpenForCausalLM(Glm4MoeForCausalLM):
    """Llama's attention, and experts in every layer."""

    attention_class = LlamaAttention

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5, moe_intermediate_size=1280)
        fields.expect("first_k_dense_replace", 0, None)
        fields.expect("use_qk_norm", False, None)
        mixture = read_mixture(fields, dense=0)
        fields.put("intermediate_size", fields.size("intermediate_size", mixture.inner_size))  # no layer is dense
        return decoder_config(
            fields,
            architecture,
            head_dim=128,
            rope_theta=1000000.0,
            partial_rotary_factor=1.0,
            qkv_bias=fields.take("attention_bias", bool, False),
            mixture=mixture,
        )


class ExaoneMoeForCausalLM(Glm4MoeForCausalLM):
    """ExaOne 4's attention, with positions on layers with a window alone; drafting layers stand apart."""

    attention_class = Qwen3Attention
    checkpoint_ignored = (*Glm4MoeForCausalLM.checkpoint_ignored, r"^mtp\.")
    checkpoint_names: ClassVar[dict[str, Source]] = Glm4MoeForCausalLM.checkpoint_names | {
        "layers.*.mlp.correction": Source.of("model.layers.*.mlp.e_score_correction_bias")
    }
    checkpoint_aliases: ClassVar[dict[str, str]] = {"mlp.e_score": "mlp.gate.e_score"}  # as transformers keeps it

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        num_layers = fields.size("num_hidden_layers")
        fields.rename(num_experts="n_routed_experts", num_shared_experts="n_shared_experts")
        fields.default(rms_norm_eps=1e-5, n_routed_experts=64, moe_intermediate_size=1024, routed_scaling_factor=2.5)
        fields.default_nullable(sliding_window=4096)
        mixture = read_sparse(fields, read_mixture(fields, dense=fields.take("first_k_dense_replace", int, 1)))
        window = fields.size("sliding_window", None)
        windows = read_layer_types(fields, num_layers, window, read_period(fields))
        config = decoder_config(fields, architecture, eos_token_id=53, windows=windows, mixture=mixture)
        return config if window is None else without_global_rope(config)


class HYV3ForCausalLM(Glm4MoeForCausalLM):
    """Qwen3's attention."""

    attention_class = Qwen3Attention
    checkpoint_names: ClassVar[dict[str, Source]] = Glm4MoeForCausalLM.checkpoint_names | {
        "layers.*.mlp.router.kernel": Source.linear("model.layers.*.mlp.router.gate.weight"),
        "layers.*.mlp.correction": Source.of("model.layers.*.mlp.expert_bias"),
        "layers.*.mlp.shared.gate_up.kernel": Source.linear(
            "model.layers.*.mlp.shared_mlp.gate_proj.weight", "model.layers.*.mlp.shared_mlp.up_proj.weight"
        ),
        "layers.*.mlp.shared.down.kernel": Source.linear("model.layers.*.mlp.shared_mlp.down_proj.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.raw("enable_moe_fp32_combine")  # how a sum of two terms is rounded
        fields.expect("mlp_bias", False, None)
        fields.rename(num_experts="n_routed_experts", num_shared_experts="n_shared_experts")
        fields.put("routed_scaling_factor", fields.take("router_scaling_factor", float, 2.826))
        fields.default(rms_norm_eps=1e-5, n_routed_experts=192, moe_intermediate_size=1536)
        mixture = read_sparse(fields, read_mixture(fields, dense=1))
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields, architecture, head_dim=128, rope_theta=11158840.0, qkv_bias=bias, out_bias=bias, mixture=mixture
        )
