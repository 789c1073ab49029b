"""Llama 2, 3 and 3.x (Touvron et al. 2023; Llama team 2024): the block that most families vary.

To try an idea, subclass: `class MyModel(LlamaForCausalLM): attention_class = MyAttention`, and pass
model_class=MyModel.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.layers.attention import AS_THEY_ARE, Placement, attend
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.norm import LayerNorm, RMSNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.residual import Deferred, deferred, defers_sum
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step, heeds_tail, narrow
from jaxllm.models.causal_lm import Cache, CausalLM, scaled
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields


class Attention(Protocol):
    """What a block mixes its tokens by."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype): ...

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""


class LlamaAttention(nnx.Module):
    """Grouped-query attention with rotary positions; queries, keys and values from one matmul."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.window = config.windows[layer]
        self.clip_qkv = config.clip_qkv
        self.soft_cap = config.soft_cap
        self.alibi = config.alibi
        self.interleaved = config.rope is not None and config.rope.interleaved
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = Linear(
            config.hidden_size, (heads, kv_heads, kv_heads), dtype,
            axes=("embed", "qkv"), bias=config.qkv_bias, std=config.initializer_range,
        )  # fmt: skip
        self.out = Linear(
            heads, config.hidden_size, dtype, axes=("heads", "embed"), bias=config.out_bias, std=config.out_std
        )

    @heeds_tail
    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], or [R, E] of a step with a tail; cache."""
        q, k, v = self.heads(x)
        q, k, placement = self.place(q, k, rotation)
        mixed, cache = attend(
            q, k, v, step, cache, scale=self.scale, placement=placement, window=self.window, soft_cap=self.soft_cap,
            alibi_slopes=None if self.alibi is None else jnp.asarray(self.alibi, jnp.float32),
        )  # fmt: skip
        return self.out(mixed.reshape(mixed.shape[0], -1)), cache

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [T, E] -> q [T, H, D], k and v [T, KH, D]."""
        heads = self.qkv(x).reshape(x.shape[0], -1, self.head_dim)
        if self.clip_qkv is not None:
            heads = jnp.clip(heads, -self.clip_qkv, self.clip_qkv)
        q, k, v = jnp.split(heads, [border // self.head_dim for border in self.qkv.borders], axis=1)
        return q, k, v

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        """q [T, H, D], k [T, KH, D] as they are, and what attention is to do to them: turn them by their positions."""
        return q, k, AS_THEY_ARE if rotation is None else Placement(rotation, self.interleaved)


class LlamaBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    norm_class: ClassVar[type[RMSNorm] | type[LayerNorm]] = RMSNorm

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[Attention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        self.residual_scale = config.residual_scale
        self.attention_norm = self.norm_class(config.hidden_size, config.norm_eps, dtype)
        self.attention = attention_class(config, layer, dtype)
        self.mlp_norm = self.norm_class(config.hidden_size, config.norm_eps, dtype)
        self.mlp: Callable[[jax.Array], jax.Array] = mlp_class(
            config.hidden_size, config.intermediate_size, config.activation, dtype,
            bias=config.mlp_bias, std=config.initializer_range, out_std=config.out_std,
        )  # fmt: skip

    @heeds_tail
    @defers_sum
    def __call__(
        self, x: Any, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[Any, PagedCache | None]:
        """x [T, E], its last sum deferred or not -> the same with it deferred ([R, E] of a step with a tail), cache."""
        normed, residual = self.attention_norm.add(*deferred(x))
        mixed, cache = self.attention(normed, rotation, step, cache)
        residual, step = narrow(residual, step)
        normed, residual = self.mlp_norm.add(scaled(mixed, self.residual_scale), residual)
        return Deferred(scaled(self.feed(normed, step), self.residual_scale), residual), cache

    def feed(self, x: jax.Array, step: Step | DenseStep) -> jax.Array:
        """x [T, E] through the MLP -> [T, E]."""
        return self.mlp(x)


class LlamaForCausalLM(CausalLM):
    """The whole model. Its classes are attributes, so that a subclass swaps one."""

    block_class: ClassVar[type[LlamaBlock]] = LlamaBlock
    attention_class: ClassVar[type[Attention]] = LlamaAttention
    mlp_class: ClassVar[type[GatedMLP] | type[MLP]] = GatedMLP

    checkpoint_prefix = "model."
    checkpoint_ignored: ClassVar[tuple[str, ...]] = (r"rotary_emb\.inv_freq$",)
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.embed_tokens.weight"),
        "layers.*.attention_norm.weight": Source.of("model.layers.*.input_layernorm.weight"),
        "layers.*.attention.qkv.kernel": Source.linear(
            "model.layers.*.self_attn.q_proj.weight",
            "model.layers.*.self_attn.k_proj.weight",
            "model.layers.*.self_attn.v_proj.weight",
        ),
        "layers.*.attention.qkv.bias": Source.of(
            "model.layers.*.self_attn.q_proj.bias",
            "model.layers.*.self_attn.k_proj.bias",
            "model.layers.*.self_attn.v_proj.bias",
        ),
        "layers.*.attention.out.kernel": Source.linear("model.layers.*.self_attn.o_proj.weight"),
        "layers.*.attention.out.bias": Source.of("model.layers.*.self_attn.o_proj.bias"),
        "layers.*.mlp_norm.weight": Source.of("model.layers.*.post_attention_layernorm.weight"),
        "layers.*.mlp.gate_up.kernel": Source.linear(
            "model.layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.up_proj.weight"
        ),
        "layers.*.mlp.gate_up.bias": Source.of("model.layers.*.mlp.gate_proj.bias", "model.layers.*.mlp.up_proj.bias"),
        "layers.*.mlp.down.kernel": Source.linear("model.layers.*.mlp.down_proj.weight"),
        "layers.*.mlp.down.bias": Source.of("model.layers.*.mlp.down_proj.bias"),
        "norm.weight": Source.of("model.norm.weight"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        bias = fields.take("attention_bias", bool, False)
        mlp_bias = fields.take("mlp_bias", bool, False)
        return decoder_config(fields, architecture, eos_token_id=2, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        scale = config.embed_scale
        self.embed_scale = float(np.asarray(scale, dtype)) if config.embed_scale_rounded else scale
        self.layers = nnx.List(
            self.block_class(config, layer, dtype, self.attention_class, self.mlp_class)
            for layer in range(config.num_layers)
        )
        self.norm = self.block_class.norm_class(config.hidden_size, config.norm_eps, dtype)

    @heeds_tail
    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        x = scaled(self.embed(step.tokens), self.embed_scale)
        x, cache = self.run_layers(x, cache, step, each=self.rotations(step.positions))
        return self.norm(x), cache

    def rotations(self, positions: jax.Array) -> list[Rotation]:
        """positions [T] int32 -> each layer's rotation, computed once for all the layers that share it."""
        ropes = self.config.layer_ropes or (self.config.rope,) * self.config.num_layers
        made = {rope: None if rope is None else rope(positions) for rope in dict.fromkeys(ropes)}
        return [made[rope] for rope in ropes]
