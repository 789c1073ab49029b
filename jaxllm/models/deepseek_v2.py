"""DeepSeek-V2 and V2-Lite (DeepSeek-AI 2024): multi-head latent attention, and small experts in groups."""

import math
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.core import LatentKV, LayerSpecs
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.linear import Linear
from jaxllm.layers.mla import Latent, attend_latents
from jaxllm.layers.moe import Mixture, Routing, SoftmaxTopK
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Dtype, Layout, Normal, Parameter, Source
from jaxllm.layers.rope import Rotation, Yarn, rotate
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.deepseek import EXPERT_NAMES
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaBlock, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock

_NORM_EPS = 1e-6
"""Of the norms inside attention, whatever the others have."""


class LatentAttention(nnx.Module):
    """Attention whose keys and values are projections of a cached latent.

    The projections are absorbed: queries meet latents through the keys' one, and what they attend to goes through
    the values' one, so that no token's keys and values are ever made.
    """

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        assert config.latent is not None
        assert config.rope is not None
        self.latent = latent = config.latent
        self.scale = latent.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.interleaved = config.rope.interleaved
        size, heads, std = config.hidden_size, config.num_heads, config.initializer_range
        if latent.q_rank is None:
            self.q_down = self.q_norm = None
        else:
            self.q_down = Linear(size, latent.q_rank, dtype, axes=("embed", "rank"), bias=config.qkv_bias, std=std)
            self.q_norm = RMSNorm(latent.q_rank, _NORM_EPS, dtype)
        self.q = Linear(latent.q_rank or size, heads * latent.head_dim, dtype, axes=("rank", "heads"), std=std)
        self.kv_down = Linear(
            size, latent.rank + latent.rope_dim, dtype, axes=("embed", "rank"), bias=config.qkv_bias, std=std
        )
        self.kv_norm = RMSNorm(latent.rank, _NORM_EPS, dtype)
        self.kv_up = Parameter(
            (heads, latent.nope_dim + latent.value_dim, latent.rank), dtype,
            axes=("heads", "head", "rank"), init=Normal(std),
        )  # fmt: skip
        self.out = Linear(
            heads * latent.value_dim, size, dtype, axes=("heads", "embed"), bias=config.out_bias, std=config.out_std
        )

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        assert rotation is not None
        tokens, latent = x.shape[0], self.latent
        narrow = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        q, q_rope = jnp.split(self.q(narrow).reshape(tokens, -1, latent.head_dim), [latent.nope_dim], axis=-1)
        kv, k_rope = jnp.split(self.kv_down(x), [latent.rank], axis=-1)
        q_rope = rotate(q_rope, *rotation, interleaved=self.interleaved)
        k_rope = rotate(k_rope[:, None], *rotation, interleaved=self.interleaved)[:, 0]

        keys_up, values_up = jnp.split(self.kv_up[...], [latent.nope_dim], axis=1)
        q = jnp.concatenate([_project("thd,hdr->thr", q, keys_up), q_rope], axis=-1)
        latents = jnp.concatenate([self.kv_norm(kv), k_rope], axis=-1)
        mixed, cache = attend_latents(q, latents, step, cache, rank=latent.rank, scale=self.scale)
        values = _project("thr,hdr->thd", mixed, values_up)
        return self.out(values.reshape(tokens, -1)), cache


def _project(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A matmul for each head, in x's type; float32 as float32, which GPUs would otherwise round to TF32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, kernel, precision=precision, preferred_element_type=x.dtype)


_BY_HEAD = Layout(lambda shape: (shape[0] * shape[1], shape[2]), lambda tensor, shape: tensor.reshape(shape))
"""A torch.nn.Linear's weight [H * D, R] where we have [H, D, R]."""


class DeepseekV2ForCausalLM(LlamaForCausalLM):
    block_class: ClassVar[type[LlamaBlock]] = MoEBlock
    attention_class = LatentAttention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        LlamaForCausalLM.checkpoint_names
        | EXPERT_NAMES
        | {
            "layers.*.attention.q_down.kernel": Source.linear("model.layers.*.self_attn.q_a_proj.weight"),
            "layers.*.attention.q_down.bias": Source.of("model.layers.*.self_attn.q_a_proj.bias"),
            "layers.*.attention.q_norm.weight": Source.of("model.layers.*.self_attn.q_a_layernorm.weight"),
            "layers.*.attention.q.kernel": Source.linear("model.layers.*.self_attn.q_b_proj.weight"),
            "layers.*.attention.kv_down.kernel": Source.linear("model.layers.*.self_attn.kv_a_proj_with_mqa.weight"),
            "layers.*.attention.kv_down.bias": Source.of("model.layers.*.self_attn.kv_a_proj_with_mqa.bias"),
            "layers.*.attention.kv_norm.weight": Source.of("model.layers.*.self_attn.kv_a_layernorm.weight"),
            "layers.*.attention.kv_up": Source(("model.layers.*.self_attn.kv_b_proj.weight",), _BY_HEAD),
        }
    )
    checkpoint_aliases: ClassVar[dict[str, str]] = {"self_attn.q_b_proj": "self_attn.q_proj"}  # without q_lora_rank

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("scoring_func", "softmax")
        fields.expect("norm_topk_prob", False, None)
        method = fields.take("topk_method", str, "greedy")
        fields.expect("topk_method", "greedy", "group_limited_greedy", None)
        groups, top_groups = fields.size("n_group", 1), fields.size("topk_group", 1)
        grouped = method == "group_limited_greedy"
        routing = SoftmaxTopK(
            fields.size("num_experts_per_tok"),
            norm=None,
            scale=fields.take("routed_scaling_factor", float, 1.0),
            groups=groups if grouped else 1,
            top_groups=top_groups if grouped else 1,
        )
        mixture = read_mixture(fields, routing, dense=fields.take("first_k_dense_replace", int, 0))
        return latent_config(fields, architecture, mixture, interleaved=True, eos_token_id=2)

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        latent = self.config.latent
        assert latent is not None
        return (LatentKV(latent.rank, latent.rope_dim),) * self.config.num_layers


def read_mixture(fields: Fields, routing: Routing, *, dense: int, correction: bool = False) -> Mixture:
    """The mixture as DeepSeek's files give it, in all layers but the first `dense`."""
    for name in ("aux_loss_alpha", "seq_aux", "ep_size"):  # of the training's loss, and of its devices
        fields.raw(name)
    every, inner_size = fields.size("moe_layer_freq", 1), fields.size("moe_intermediate_size")
    return Mixture(
        sparse=tuple(layer >= dense and layer % every == 0 for layer in range(fields.size("num_hidden_layers"))),
        num_experts=fields.size("n_routed_experts"),
        inner_size=inner_size,
        routing=routing,
        shared_size=inner_size * (fields.size("n_shared_experts", None) or 0),
        correction=correction,
    )


def latent_config(
    fields: Fields, architecture: str, mixture: Mixture | None, *, interleaved: bool, eos_token_id: int
) -> ModelConfig:
    """What DeepSeek's files say beside the mixture: latent attention, and a decoder around it."""
    latent = Latent(
        q_rank=fields.size("q_lora_rank", None),
        rank=fields.size("kv_lora_rank"),
        nope_dim=fields.size("qk_nope_head_dim"),
        rope_dim=fields.size("qk_rope_head_dim"),
        value_dim=fields.size("v_head_dim"),
    )
    fields.expect("head_dim", latent.rope_dim, None)
    fields.expect("qk_head_dim", latent.head_dim, None)
    fields.expect("num_key_value_heads", fields.size("num_attention_heads"), None)
    fields.expect("mlp_bias", False, None)
    bias = fields.take("attention_bias", bool, False)
    config = decoder_config(
        fields, architecture, head_dim=latent.rope_dim, eos_token_id=eos_token_id, interleaved=interleaved,
        qkv_bias=bias, out_bias=bias, mixture=mixture, latent=latent,
    )  # fmt: skip
    return replace(config, attention_scale=latent.head_dim**-0.5 * _warmth(fields, config) ** 2)


def _warmth(fields: Fields, config: ModelConfig) -> float:
    """What YaRN as DeepSeek has it multiplies queries and keys by, turned or not."""
    rope = fields.take("rope_scaling", dict, {}) | fields.take("rope_parameters", dict, {})
    if config.rope is None or not isinstance(config.rope.scaling, Yarn):
        return 1.0
    return 0.1 * (rope.get("mscale_all_dim") or 0.0) * math.log(max(1.0, config.rope.scaling.factor)) + 1.0
