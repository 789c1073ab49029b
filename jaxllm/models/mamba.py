"""Mamba (Gu and Dao 2023) and Falcon Mamba (TII 2024), which normalises time steps, B and C: no attention at all."""

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.core import LayerSpecs
from jaxllm.layers.cache import StateCache
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.norm import RMSNorm, WeightlessRMSNorm
from jaxllm.layers.parameter import Dtype, Layout, Source, linear_rows
from jaxllm.layers.rope import Rotation
from jaxllm.layers.ssm import Mamba, StateSpace, make_mixer
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import Cache
from jaxllm.models.config import ModelConfig, common
from jaxllm.models.fields import Fields
from jaxllm.models.llama import Attention, LlamaForCausalLM

POSITIONS = 1 << 18
"""What a model is taken to be made for that knows no positions: the longest texts that Mamba 2 was tried on."""

TRAINING = (
    "time_step_min", "time_step_max", "time_step_floor", "time_step_scale", "time_step_init_scheme",
    "rescale_prenorm_residual", "use_mambapy", "use_falcon_mambapy", "use_associative_scan", "use_mamba_kernels",
    "chunk_size", "mamba_chunk_size", "mamba_ssm_cache_dtype", "num_logits_to_keep", "z_loss_coefficient",
)  # fmt: skip
"""How weights were drawn at first, and how other programs compute: fields that state-space models ignore."""

_TAPS = Layout(lambda shape: (shape[0], 1, shape[1]), lambda tensor, shape: tensor.reshape(shape))


def mixer_names(ours: str, theirs: str) -> dict[str, Source]:
    """Sources of what Mamba and Mamba 2 have in common. ours, theirs: the mixer."""
    return {
        **linear_rows(f"{ours}.in_proj", f"{theirs}.in_proj"),
        **convolution_names(f"{ours}.conv", f"{theirs}.conv1d"),
        f"{ours}.dt_bias": Source.of(f"{theirs}.dt_bias"),
        f"{ours}.A_log": Source.of(f"{theirs}.A_log"),
        f"{ours}.D": Source.of(f"{theirs}.D"),
        **linear_rows(f"{ours}.out_proj", f"{theirs}.out_proj"),
    }


def convolution_names(ours: str, theirs: str) -> dict[str, Source]:
    """Sources of a convolution, stored [C, 1, K] where we have [C, K]."""
    return {f"{ours}.weight": Source((f"{theirs}.weight",), _TAPS), f"{ours}.bias": Source.of(f"{theirs}.bias")}


def mamba_names(ours: str, theirs: str) -> dict[str, Source]:
    """Sources of a Mamba mixer."""
    return mixer_names(ours, theirs) | {
        f"{ours}.x_proj.kernel": Source.linear(f"{theirs}.x_proj.weight"),
        f"{ours}.dt_proj.kernel": Source.linear(f"{theirs}.dt_proj.weight"),
        f"{ours}.dt_bias": Source.of(f"{theirs}.dt_proj.bias"),
        f"{ours}.dt_norm.weight": Source.of(f"{theirs}.dt_layernorm.weight"),
        f"{ours}.b_norm.weight": Source.of(f"{theirs}.b_layernorm.weight"),
        f"{ours}.c_norm.weight": Source.of(f"{theirs}.c_layernorm.weight"),
    }


class MambaBlock(nnx.Module):
    """x + mamba(norm(x))."""

    norm_class: ClassVar[type[RMSNorm]] = RMSNorm

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[Attention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        assert config.state_space is not None
        self.dtype, self.wide = dtype, config.wide_residual
        self.norm = self.norm_class(config.hidden_size, config.norm_eps, dtype)
        self.mamba = make_mixer(
            config.state_space, config.hidden_size, dtype, std=config.initializer_range, out_std=config.out_std
        )

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: StateCache | None
    ) -> tuple[jax.Array, StateCache | None]:
        """x [T, E] -> [T, E], cache."""
        mixed, cache = self.mamba(self.norm(x.astype(self.dtype)), step, cache)
        if self.wide:
            return x.astype(jnp.float32) + mixed.astype(jnp.float32), cache
        return x + mixed, cache


class MambaForCausalLM(LlamaForCausalLM):
    block_class: ClassVar[Any] = MambaBlock

    checkpoint_prefix = "backbone."
    checkpoint_aliases: ClassVar[dict[str, str]] = {"backbone.embeddings.": "backbone.embedding."}  # at first
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("backbone.embeddings.weight"),
        "layers.*.norm.weight": Source.of("backbone.layers.*.norm.weight"),
        **mamba_names("layers.*.mamba", "backbone.layers.*.mixer"),
        "norm.weight": Source.of("backbone.norm_f.weight"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        size, num_layers = fields.size("hidden_size"), fields.size("num_hidden_layers")
        fields.expect("d_model", size)
        fields.expect("n_layer", num_layers)
        fields.expect("ssm_cfg", {}, None)
        fields.ignore("fused_add_norm", "pad_vocab_size_multiple")
        return mamba_config(fields, architecture, read_mamba(fields, size), tied=True)

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        hidden, cache = super().__call__(step, cache)
        return hidden.astype(self.embed.table.dtype), cache

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        return tuple(layer.mamba.state for layer in self.layers)


class FalconMambaForCausalLM(MambaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        eps = fields.take("mixer_rms_eps", float, 1e-6)
        sizes = read_mamba(fields, fields.size("hidden_size"), norm_class=WeightlessRMSNorm, norm_eps=eps)
        return mamba_config(fields, architecture, sizes, tied=True)


def read_mamba(fields: Fields, size: int, **family: Any) -> Mamba:
    """The sizes under Mamba's own names. size: of the hidden state."""
    inner_size = fields.size("intermediate_size", fields.size("expand", 2) * size)
    fields.ignore("expand")
    fields.expect("d_inner", inner_size)
    return Mamba(
        inner_size=inner_size,
        state_size=fields.size("state_size", 16),
        conv_size=fields.size("conv_kernel", 4),
        rank=read_rank(fields, "time_step_rank", size),
        bias=fields.take("use_bias", bool, False),
        conv_bias=fields.take("use_conv_bias", bool, True),
        **family,
    )


def read_rank(fields: Fields, name: str, size: int) -> int:
    """The rank of time steps, which "auto" makes a sixteenth of the hidden state's size."""
    if fields.raw(name, "auto") in ("auto", None):
        return math.ceil(size / 16)
    rank: int = fields.size(name)
    return rank


def mamba_config(
    fields: Fields, architecture: str, sizes: StateSpace, *, tied: bool, eos_token_id: int = 0, **family: Any
) -> ModelConfig:
    """The configuration of a model without attention. tied, eos_token_id: where the file does not say."""
    num_layers, size = fields.size("num_hidden_layers"), fields.size("hidden_size")
    fields.expect("rms_norm", True)
    fields.ignore(*TRAINING)
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=size,
        intermediate_size=size,
        num_layers=num_layers,
        num_heads=1,
        num_kv_heads=1,
        head_dim=size,
        max_position_embeddings=fields.size("max_position_embeddings", POSITIONS),
        norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
        activation=read_activation(fields),
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, tied),
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        windows=(None,) * num_layers,
        rope=None,
        state_space=sizes,
        recurrent=(True,) * num_layers,
        wide_residual=fields.take("residual_in_fp32", bool, True),
        **common(fields, eos_token_id),
        **family,
    )


def read_activation(fields: Fields, name: str = "hidden_act") -> str:
    """The convolutions' activation, which is silu in every checkpoint."""
    fields.expect(name, "silu", "swish")
    return "silu"
