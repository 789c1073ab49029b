"""What a config.json says of rotary position embedding, in both generations of transformers' names."""

import math
from typing import Any

from jaxllm.errors import ConfigError
from jaxllm.layers.rope import Linear, Llama3, LongRope, Rope, Yarn
from jaxllm.models.fields import Fields, shortened


def read_rope(
    fields: Fields,
    head_dim: int,
    max_position_embeddings: int,
    partial_rotary_factor: float | None = None,
    *,
    theta: float = 10000.0,
    scaling: dict[str, Any] | None = None,
) -> tuple[Rope, int]:
    """Rotary embedding from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (5).

    partial_rotary_factor: the turned share of head_dim where the file does not say; None in a family that turns all.
    theta: the base where the file does not say. scaling: in place of all that the file says.
    Returns it and the positions the checkpoint is made for, which YaRN extends.
    """
    if scaling is None:
        theta = fields.positive("rope_theta", theta)
        scaling = fields.take("rope_scaling", dict, {}) | fields.take("rope_parameters", dict, {})
        scaling = Fields(scaling, f"{fields.where}rope ").take("full_attention", dict, scaling)
    inner = Fields(scaling, f"{fields.where}rope ")
    theta = inner.positive("rope_theta", theta)
    old_name = inner.take("type", str, "default")
    kind = inner.take("rope_type", str, old_name)
    if partial_rotary_factor is None:
        inner.expect("partial_rotary_factor", 1, None)
    else:
        share = fields.take("partial_rotary_factor", float, partial_rotary_factor)
        share = inner.positive("partial_rotary_factor", share)
        if share > 1:
            raise ConfigError(f"{inner.where}partial_rotary_factor={share}: must be a share of head_dim, 1 at most")
        head_dim = int(head_dim * share)

    if kind == "default":
        rope = Rope(head_dim, theta)
    elif kind == "dynamic":  # differs beyond max_position_embeddings only, where nothing is served
        for name in (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
        ):
            inner.raw(name)
        alpha = inner.positive("alpha", 1.0)  # Hunyuan's: a larger base everywhere
        rope = Rope(head_dim, theta * alpha ** (head_dim / (head_dim - 2)) if alpha != 1.0 else theta)
    elif kind == "linear":
        rope = Rope(head_dim, theta, Linear(inner.positive("factor")))
    elif kind == "llama3":
        original = inner.size("original_max_position_embeddings", max_position_embeddings)
        low, high = inner.positive("low_freq_factor"), inner.positive("high_freq_factor")
        if low >= high:
            raise ConfigError(f"{inner.where}low_freq_factor={low} must be below high_freq_factor={high}")
        rope = Rope(head_dim, theta, Llama3(inner.positive("factor"), low, high, original))
    elif kind == "yarn":
        original = inner.size("original_max_position_embeddings", max_position_embeddings)
        factor = inner.positive("factor", max_position_embeddings / original)
        if theta == 1:
            raise ConfigError(f"{inner.where}rope_theta=1: turns all numbers alike, which YaRN does not stretch")
        rope = Rope(
            head_dim,
            theta,
            Yarn(
                factor,
                original,
                attention_factor=inner.take("attention_factor", float, _yarn_attention_factor(inner, factor)),
                beta_fast=inner.positive("beta_fast", 32.0),
                beta_slow=inner.positive("beta_slow", 1.0),
                truncate=inner.take("truncate", bool, True),
            ),
        )
        max_position_embeddings = max(max_position_embeddings, int(original * factor))
    elif kind in ("longrope", "su"):
        rope = Rope(head_dim, theta, _read_longrope(fields, inner, head_dim, max_position_embeddings))
    else:
        raise ConfigError(
            f"{inner.where}type {kind!r} is not supported; known: default, dynamic, linear, llama3, longrope, yarn."
            " Remove it from the file to serve within the original context"
        )
    inner.finish()
    return rope, max_position_embeddings


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """What cos and sin are multiplied by where the file does not say: the paper's 0.1 ln(factor) + 1, or DeepSeek's."""
    growth = math.log(factor) if factor > 1 else 0.0
    mscale, mscale_all_dim = rope.take("mscale", float, None), rope.take("mscale_all_dim", float, None)
    if mscale and mscale_all_dim:
        return (0.1 * mscale * growth + 1.0) / (0.1 * mscale_all_dim * growth + 1.0)
    return 0.1 * growth + 1.0


def _read_longrope(fields: Fields, rope: Fields, head_dim: int, max_position_embeddings: int) -> LongRope:
    original = fields.size("original_max_position_embeddings", max_position_embeddings)
    original = rope.size("original_max_position_embeddings", original)
    factor = rope.positive("factor", max_position_embeddings / original)
    warmer = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    sets = {}
    for name in ("short_factor", "long_factor"):
        values = rope.take_list(name, float)
        if len(values) != head_dim // 2 or min(values) <= 0:
            raise ConfigError(f"{rope.where}{name}={shortened(values)} must hold {head_dim // 2} positive numbers")
        sets[name] = tuple(values)
    warmer = rope.take("long_mscale", float, warmer)  # Phi-MoE's name of the factor
    rope.expect("short_mscale", warmer)
    return LongRope(
        short=sets["short_factor"],
        long=sets["long_factor"],
        original_max_position_embeddings=original,
        context=max_position_embeddings,
        attention_factor=rope.take("attention_factor", float, warmer),
    )
