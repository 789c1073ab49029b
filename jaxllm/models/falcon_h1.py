"""Falcon-H1 (TII 2025): attention and Mamba 2 side by side in every layer, with factors all over (muP)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jaxllm.core import LayerSpecs, PagedKV
from jaxllm.errors import ConfigError
from jaxllm.layers.mlp import MLP, GatedMLP, activate
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.rope import Rotation
from jaxllm.layers.ssm import make_mixer
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.bamba import FEED_FORWARD
from jaxllm.models.causal_lm import scaled
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import Attention, LlamaBlock, LlamaForCausalLM
from jaxllm.models.mamba import TRAINING, read_activation
from jaxllm.models.mamba2 import mamba2_names, read_mamba2


@dataclass(frozen=True, kw_only=True)
class FalconH1Config(ModelConfig):
    """attention_in_factor, attention_out_factor, mamba_out_factor, gate_factor, mlp_factor: of attention's input and
    output, of Mamba's output, of the MLP's gate and of its output."""

    attention_in_factor: float
    attention_out_factor: float
    mamba_out_factor: float
    gate_factor: float
    mlp_factor: float


class FalconH1MLP(GatedMLP):
    """down(activation(factor * gate(x)) * up(x))."""

    gate_factor: float = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, E] -> [T, E]."""
        gate, up = self.gate_up.split(x)
        return self.down(activate(self.activation, scaled(gate, self.gate_factor)) * up)


class FalconH1Block(LlamaBlock):
    """x + attention(norm(x)) + mamba(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[Attention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        assert isinstance(config, FalconH1Config)
        assert config.state_space is not None
        super().__init__(config, layer, dtype, attention_class, mlp_class)
        self.attention_in_factor, self.attention_out_factor = config.attention_in_factor, config.attention_out_factor
        self.mamba_out_factor, self.mlp_factor = config.mamba_out_factor, config.mlp_factor
        self.mamba = make_mixer(
            config.state_space, config.hidden_size, dtype, std=config.initializer_range, out_std=config.out_std
        )
        if isinstance(self.mlp, FalconH1MLP):
            self.mlp.gate_factor = config.gate_factor

    def __call__(self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: Any) -> tuple[jax.Array, Any]:
        """x [T, E] -> [T, E], cache: a PagedCache and a StateCache."""
        pages, states = (None, None) if cache is None else cache
        given = self.attention_norm(x)
        recurred, states = self.mamba(given, step, states)
        mixed, pages = self.attention(scaled(given, self.attention_in_factor), rotation, step, pages)
        made = scaled(recurred, self.mamba_out_factor) + scaled(mixed, self.attention_out_factor)
        normed, x = self.mlp_norm.add(made, x)
        return x + scaled(self.feed(normed, step), self.mlp_factor), None if cache is None else (pages, states)


class FalconH1ForCausalLM(LlamaForCausalLM):
    block_class = FalconH1Block
    mlp_class = FalconH1MLP
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **LlamaForCausalLM.checkpoint_names,
        **FEED_FORWARD,
        **mamba2_names("layers.*.mamba", "model.layers.*.mamba"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)

        def factor(name: str) -> float:
            value: float = fields.take(name, float, 1.0)
            return value

        size, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        bias = fields.take("attention_bias", bool, False)
        gate_factor, mlp_factor = _factors(fields, "mlp_multipliers", 2)
        family: dict[str, Any] = {}
        if fields.raw("mamba_d_ssm") is not None:
            family["inner_size"] = fields.size("mamba_d_ssm")
        if not fields.take("mamba_rms_norm", bool, False):
            family["norm_groups"] = 0
        sizes = read_mamba2(
            fields,
            out_bias=fields.take("projectors_bias", bool, False),
            norm_before_gate=fields.take("mamba_norm_before_gate", bool, True),
            factors=_factors(fields, "ssm_multipliers", 5),
            in_factor=factor("ssm_in_multiplier"),
            **family,
        )
        fields.expect("mamba_use_mlp", True)
        fields.expect("attn_layer_indices", None)
        fields.expect("sliding_window", None)
        fields.ignore("mlp_expansion_factor", *TRAINING)
        read_activation(fields)
        head_dim = fields.size("head_dim", size // heads)
        config = decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, False),
            embed_scale=factor("embedding_multiplier"),
            logit_scale=factor("lm_head_multiplier"),
            attention_scale=factor("key_multiplier") * head_dim**-0.5,
            state_space=sizes,
        )
        return FalconH1Config(
            **vars(config),
            attention_in_factor=factor("attention_in_multiplier"),
            attention_out_factor=factor("attention_out_multiplier"),
            mamba_out_factor=factor("ssm_out_multiplier"),
            gate_factor=gate_factor,
            mlp_factor=mlp_factor,
        )

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        pages = PagedKV(self.config.num_kv_heads, self.config.head_dim)
        return tuple((pages, layer.mamba.state) for layer in self.layers)


def _factors(fields: Fields, name: str, count: int) -> tuple[Any, ...]:
    values = fields.take_list(name, float, [1.0] * count)
    if len(values) != count:
        raise ConfigError(f"{fields.where}{name}={values} must be {count} numbers")
    return tuple(values)
