"""Mamba 2 (Dao and Gu 2024): Mamba with heads, and B and C shared by groups of them; Codestral Mamba is one."""

import math
from typing import Any, ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.parameter import Source
from jaxllm.layers.ssm import Mamba2
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields, shortened
from jaxllm.models.mamba import MambaForCausalLM, mamba_config, mixer_names


def mamba2_names(ours: str, theirs: str) -> dict[str, Source]:
    """Sources of a Mamba 2 mixer."""
    return mixer_names(ours, theirs) | {f"{ours}.norm.weight": Source.of(f"{theirs}.norm.weight")}


class Mamba2ForCausalLM(MambaForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **{row: source for row, source in MambaForCausalLM.checkpoint_names.items() if ".mamba." not in row},
        **mamba2_names("layers.*.mamba", "backbone.layers.*.mixer"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        size, groups, bias = (
            fields.size("hidden_size"),
            fields.size("n_groups", 8),
            fields.take("use_bias", bool, False),
        )
        sizes = Mamba2(
            num_heads=fields.size("num_heads", 128),
            head_dim=fields.size("head_dim", 64),
            state_size=fields.size("state_size", 128),
            groups=groups,
            conv_size=fields.size("conv_kernel", 4),
            bias=bias,
            out_bias=bias,
            conv_bias=fields.take("use_conv_bias", bool, True),
            time_step_limit=read_limit(fields),
            norm_groups=groups,
            norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
        )
        check_inner_size(fields, sizes, fields.size("expand", 2) * size)
        fields.expect("intermediate_size", sizes.inner_size, None)
        # norm_before_gate: written for other code; the gate comes first. time_step_rank: Mamba's, without use here.
        fields.ignore("norm_before_gate", "time_step_rank")
        return mamba_config(fields, architecture, sizes, tied=False, eos_token_id=2)


def read_mamba2(fields: Fields, **family: Any) -> Mamba2:
    """The sizes under the names that Bamba and its kin use."""
    inner_size = fields.size("mamba_expand", 2) * fields.size("hidden_size")
    heads, bias = fields.size("mamba_n_heads", 128), fields.take("mamba_proj_bias", bool, False)
    groups = fields.size("mamba_n_groups", 1)
    inner_size = family.pop("inner_size", inner_size)
    head_dim = inner_size // heads if fields.raw("mamba_d_head", "auto") == "auto" else fields.size("mamba_d_head")
    shared: dict[str, Any] = {
        "num_heads": heads,
        "head_dim": head_dim,
        "state_size": fields.size("mamba_d_state", 256),
        "groups": groups,
        "conv_size": fields.size("mamba_d_conv", 4),
        "bias": bias,
        "out_bias": bias,
        "conv_bias": fields.take("mamba_conv_bias", bool, True),
        "time_step_limit": read_limit(fields),
        "norm_groups": groups,
        "norm_eps": fields.take("rms_norm_eps", float, 1e-6),
    }
    sizes = Mamba2(**(shared | family))
    check_inner_size(fields, sizes, inner_size)
    return sizes


def check_inner_size(fields: Fields, sizes: Mamba2, inner_size: int) -> None:
    """Raises ConfigError where the heads do not make up the channels, or do not share the groups evenly."""
    check_groups(fields, sizes)
    if sizes.inner_size != inner_size:
        raise ConfigError(
            f"{fields.where}{sizes.num_heads} state-space heads of {sizes.head_dim} are not the {inner_size} channels"
            " that the file asks for; take the checkpoint's own config.json"
        )


def check_groups(fields: Fields, sizes: Mamba2) -> None:
    """Raises ConfigError where the heads do not share the groups evenly."""
    if sizes.num_heads % sizes.groups:
        raise ConfigError(
            f"{fields.where}{sizes.num_heads} state-space heads do not share {sizes.groups} groups evenly"
        )


def read_limit(fields: Fields, name: str = "time_step_limit") -> tuple[float, float]:
    """The bounds of time steps."""
    limit = fields.take(name, list, [0.0, math.inf])  # the only numbers that may be infinite
    if len(limit) != 2 or not all(type(bound) in (int, float) for bound in limit) or not limit[0] <= limit[1]:
        raise ConfigError(f"{fields.where}{name}={shortened(limit)} must be two numbers, the least and the most")
    return float(limit[0]), float(limit[1])
