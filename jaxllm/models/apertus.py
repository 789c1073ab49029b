"""Apertus (Swiss AI 2025): Qwen3's attention, and an ungated MLP by xIELU (Huang and Schlag 2024)."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.layers.mlp import MLP
from jaxllm.layers.parameter import Constant, Dtype, Parameter, Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.qwen3 import Qwen3Attention, Qwen3ForCausalLM

_BETA, _EPS = 0.5, -1e-6


class XieluMLP(MLP):
    """down(xielu(up(x))): a parabola above 0, an exponential below, their curvatures learned."""

    def __init__(self, size: int, inner: int, activation: str, dtype: Dtype, *, bias: bool, std: float, out_std: float):
        super().__init__(size, inner, activation, dtype, bias=bias, std=std, out_std=out_std)
        # What softplus makes 0.8 and 0.3 of, as training starts.
        self.above = Parameter((1,), dtype, axes=("norm",), init=Constant(0.2035))
        self.below = Parameter((1,), dtype, axes=("norm",), init=Constant(-1.0502))

    def __call__(self, x: jax.Array) -> jax.Array:
        up = self.up(x)
        wide = up.astype(jnp.float32)
        above, below = (jax.nn.softplus(alpha[...].astype(jnp.float32))[:, None] for alpha in (self.above, self.below))
        bent = jnp.where(wide > 0, above * wide * wide, (jnp.expm1(jnp.minimum(wide, _EPS)) - wide) * (_BETA + below))
        return self.down((bent + _BETA * wide).astype(up.dtype))


class ApertusForCausalLM(Qwen3ForCausalLM):
    attention_class = Qwen3Attention
    mlp_class = XieluMLP
    # beta and eps, which are the same for all.
    checkpoint_ignored = (*Qwen3ForCausalLM.checkpoint_ignored, r"mlp\.act_fn\.(beta|eps)$")
    checkpoint_names: ClassVar[dict[str, Source]] = Qwen3ForCausalLM.checkpoint_names | {
        "layers.*.attention_norm.weight": Source.of("model.layers.*.attention_layernorm.weight"),
        "layers.*.mlp_norm.weight": Source.of("model.layers.*.feedforward_layernorm.weight"),
        "layers.*.mlp.up.kernel": Source.linear("model.layers.*.mlp.up_proj.weight"),
        "layers.*.mlp.above": Source.of("model.layers.*.mlp.act_fn.alpha_p"),
        "layers.*.mlp.below": Source.of("model.layers.*.mlp.act_fn.alpha_n"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        fields.default_rope(
            "llama3", factor=8.0, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0
        )
        fields.expect("hidden_act", "xielu", None)
        fields.expect("mlp_bias", False, None)
        fields.expect("post_norm", False, None)
        fields.expect("qk_norm", True, None)
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            rope_theta=12000000.0,
            activation="silu",  # of no layer: the MLP has its own
            qkv_bias=bias,
            out_bias=bias,
        )
