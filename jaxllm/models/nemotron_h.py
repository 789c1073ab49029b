"""Nemotron-H, Nemotron Nano 2 and Nemotron 3 (NVIDIA 2025): layers of one thing each, most of them Mamba 2."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
from flax import nnx

from jaxllm.core import LayerSpecs
from jaxllm.errors import ConfigError
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.moe import Mixture, MoE, SigmoidTopK
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows
from jaxllm.layers.rope import Rotation
from jaxllm.layers.ssm import Mamba2, make_mixer
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import Attention, LlamaForCausalLM
from jaxllm.models.mamba import TRAINING, read_activation
from jaxllm.models.mamba2 import check_groups, mamba2_names, read_limit

_MIXER = "backbone.layers.*.mixer"
_KINDS = {
    "M": "mamba", "mamba": "mamba", "linear_attention": "mamba",
    "*": "attention", "attention": "attention", "full_attention": "attention",
    "-": "mlp", "mlp": "mlp",
    "E": "moe", "moe": "moe",
}  # fmt: skip
"""What files call the kinds of layers, by letters or by words."""


@dataclass(frozen=True, kw_only=True)
class NemotronHConfig(ModelConfig):
    """kinds: per layer, the one thing that it is: mamba, attention, mlp or moe."""

    kinds: tuple[str, ...]


class NemotronHBlock(nnx.Module):
    """x + mixer(norm(x)); the mixer is what config.kinds says."""

    norm_class: ClassVar[type[RMSNorm]] = RMSNorm

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[Attention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        assert isinstance(config, NemotronHConfig)
        self.kind, size = config.kinds[layer], config.hidden_size
        self.norm = self.norm_class(size, config.norm_eps, dtype)
        stds: dict[str, Any] = {"std": config.initializer_range, "out_std": config.out_std}
        if self.kind == "mamba":
            assert config.state_space is not None
            self.mamba = make_mixer(config.state_space, size, dtype, **stds)
        elif self.kind == "attention":
            self.attention = attention_class(config, layer, dtype)
        elif self.kind == "moe":
            assert config.mixture is not None
            self.mlp: MoE | GatedMLP | MLP = MoE(config.mixture, size, config.activation, dtype, **stds)
        else:
            self.mlp = mlp_class(size, config.intermediate_size, config.activation, dtype, bias=config.mlp_bias, **stds)

    def __call__(self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: Any) -> tuple[jax.Array, Any]:
        """x [T, E] -> [T, E], cache: a StateCache of a Mamba layer, a PagedCache of one that attends, else ()."""
        mixed = self.norm(x)
        if self.kind == "mamba":
            mixed, cache = self.mamba(mixed, step, cache)
        elif self.kind == "attention":
            mixed, cache = self.attention(mixed, rotation, step, cache)
        else:
            mixed = self.mlp(mixed, step.real) if isinstance(self.mlp, MoE) else self.mlp(mixed)
        return x + mixed, cache


class NemotronHForCausalLM(LlamaForCausalLM):
    block_class: ClassVar[Any] = NemotronHBlock
    mlp_class = MLP

    checkpoint_prefix = "backbone."
    checkpoint_aliases: ClassVar[dict[str, str]] = {"backbone.": "model."}
    checkpoint_ignored = (r"^mtp\.",)  # layers that draft
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("backbone.embeddings.weight"),
        "layers.*.norm.weight": Source.of("backbone.layers.*.norm.weight"),
        **mamba2_names("layers.*.mamba", _MIXER),
        **linear_rows("layers.*.attention.qkv", f"{_MIXER}.q_proj", f"{_MIXER}.k_proj", f"{_MIXER}.v_proj"),
        **linear_rows("layers.*.attention.out", f"{_MIXER}.o_proj"),
        **linear_rows("layers.*.mlp.up", f"{_MIXER}.up_proj"),
        **linear_rows("layers.*.mlp.down", f"{_MIXER}.down_proj"),
        "layers.*.mlp.router.kernel": Source.linear(f"{_MIXER}.gate.weight"),
        "layers.*.mlp.correction": Source.of(f"{_MIXER}.gate.e_score_correction_bias"),
        "layers.*.mlp.experts.gate_up": Source.linear(f"{_MIXER}.experts.*.up_proj.weight"),
        "layers.*.mlp.experts.down": Source.linear(f"{_MIXER}.experts.*.down_proj.weight"),
        **linear_rows("layers.*.mlp.shared.up", f"{_MIXER}.shared_experts.up_proj"),
        **linear_rows("layers.*.mlp.shared.down", f"{_MIXER}.shared_experts.down_proj"),
        **linear_rows("layers.*.mlp.to_latent", f"{_MIXER}.fc1_latent_proj"),
        **linear_rows("layers.*.mlp.from_latent", f"{_MIXER}.fc2_latent_proj"),
        "norm.weight": Source.of("backbone.norm_f.weight"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(
            attention_head_dim="head_dim", mlp_hidden_act="hidden_act", mamba_n_groups="n_groups",
            mamba_d_conv="conv_kernel", mamba_conv_bias="use_conv_bias", mamba_dt_limit="time_step_limit",
        )  # fmt: skip
        kinds = _read_kinds(fields)
        fields.put("num_hidden_layers", len(kinds))
        eps = fields.take("layer_norm_epsilon", float, 1e-5)
        for name in ("norm_eps", "rms_norm_eps"):
            fields.expect(name, eps)
        fields.put("rms_norm_eps", eps)
        fields.default(hidden_act="relu2")
        attention_bias, mlp_bias = fields.take("attention_bias", bool, False), fields.take("mlp_bias", bool, False)
        sizes = _read_sizes(fields, eps)
        fields.expect("sliding_window", None)
        # Attention knows no positions, whatever the file says about rotations. Layers that draft are not served.
        fields.ignore(
            "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "expand", "mamba_expand",
            "mamba_dt_min", "mamba_dt_max", "mamba_dt_init_floor", "time_step_rank", "residual_in_fp32",
            "moe_shared_expert_overlap", "num_nextn_predict_layers", "mtp_layers_block_type",
            "mtp_hybrid_override_pattern", *TRAINING,
        )  # fmt: skip
        read_activation(fields, "mamba_hidden_act")
        config = decoder_config(
            fields,
            architecture,
            head_dim=128,
            eos_token_id=2,
            qkv_bias=attention_bias,
            out_bias=attention_bias,
            mlp_bias=mlp_bias,
            mixture=_read_mixture(fields, kinds, mlp_bias),
            state_space=sizes,
            recurrent=tuple(kind == "mamba" for kind in kinds),
        )
        return NemotronHConfig(**vars(replace(config, rope=None)), kinds=kinds)

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        attention = super().cache_specs()
        return tuple(
            layer.mamba.state if layer.kind == "mamba" else attention[i] if layer.kind == "attention" else ()
            for i, layer in enumerate(self.layers)
        )


def _read_kinds(fields: Fields) -> tuple[str, ...]:
    pattern = fields.take("hybrid_override_pattern", str, None)
    kinds = fields.take_list("layers_block_type", str, fields.take_list("layer_types", str, None)) or list(
        pattern or ""
    )
    if not kinds or not set(kinds) <= set(_KINDS):
        raise ConfigError(
            f"{fields.where}hybrid_override_pattern or layers_block_type must name the layers, each one of"
            f" {', '.join(_KINDS)}; they say {pattern or kinds}"
        )
    fields.expect("num_hidden_layers", len(kinds), None)
    return tuple(_KINDS[kind] for kind in kinds)


def _read_sizes(fields: Fields, eps: float) -> Mamba2:
    groups, bias = fields.size("n_groups", 8), fields.take("use_bias", bool, False)
    fields.expect("mamba_proj_bias", bias, False)
    sizes = Mamba2(
        num_heads=fields.size("mamba_num_heads", 128),
        head_dim=fields.size("mamba_head_dim", 64),
        state_size=fields.size("ssm_state_size", 128),
        groups=groups,
        conv_size=fields.size("conv_kernel", 4),
        bias=bias,
        out_bias=bias,
        conv_bias=fields.take("use_conv_bias", bool, True),
        time_step_limit=read_limit(fields),
        norm_groups=groups,
        norm_eps=eps,
    )
    check_groups(fields, sizes)
    return sizes


def _read_mixture(fields: Fields, kinds: tuple[str, ...], bias: bool) -> Mixture | None:
    shared_size = fields.take("moe_shared_expert_intermediate_size", int, 7688)
    mixture = Mixture(
        sparse=tuple(kind == "moe" for kind in kinds),
        num_experts=fields.size("n_routed_experts", 8),
        inner_size=fields.size("moe_intermediate_size", 7688),
        routing=SigmoidTopK(
            fields.size("num_experts_per_tok", 2),
            groups=fields.size("n_group", 1),
            top_groups=fields.size("topk_group", 1),
            normalised=fields.take("norm_topk_prob", bool, True),
            scale=fields.take("routed_scaling_factor", float, 1.0),
        ),
        shared_size=shared_size,
        shared_bias=bias,
        gated=False,
        latent_size=fields.take("moe_latent_size", int, 0),
        correction=True,
    )
    fields.expect("n_shared_experts", 1, None)  # of the size above, whatever their number
    return mixture if "moe" in kinds else None
