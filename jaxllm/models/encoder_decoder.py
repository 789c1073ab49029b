"""What encoder-decoders share (Vaswani et al. 2017): an encoder that reads a source, and a decoder that goes on from a
prompt of its own and looks at what the encoder made of the source.

The encoder runs on whole sequences (EncodeStep). Every decoder layer caches its own tokens' keys and values page by
page, and the source's, which are written when the source is encoded and stay as they are.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx

from jaxllm.core import CrossKV, LayerSpecs, PagedKV
from jaxllm.layers.attention import attend
from jaxllm.layers.cache import CrossCache, PagedCache
from jaxllm.layers.cross_attention import Encoded, attend_source, attend_source_dense, write_source
from jaxllm.layers.encoder import attend_whole
from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.norm import LayerNorm, RMSNorm
from jaxllm.layers.parameter import Dtype
from jaxllm.layers.step import AnyStep, DenseStep, EncodeStep, Step
from jaxllm.models.causal_lm import Cache, CausalLM
from jaxllm.models.config import ModelConfig

Norm = RMSNorm | LayerNorm
Bias = jax.Array | None
"""What attention adds to its scores by distance; None in families that know positions otherwise."""


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(ModelConfig):
    """A decoder's numbers, and its encoder's.

    Attributes:
        encoder: the encoder's, of the decoder's width and vocabulary.
        norm_first: norms stand before attention and MLP, not behind their sums.
        gated: the MLPs are.
        decoder_start_token_id: what decoder prompts begin with.
        forced_bos_token_id: what stands behind it in any case. generation_config.json may name others.
    """

    encoder: ModelConfig
    norm_first: bool
    gated: bool
    decoder_start_token_id: int | None
    forced_bos_token_id: int | None


class SelfAttention(nnx.Module):
    """To both sides in an encoder, to the tokens before in a decoder."""

    def __init__(self, config: ModelConfig, dtype: Dtype):
        size, heads, std = config.hidden_size, config.num_heads * config.head_dim, config.initializer_range
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.qkv = Linear(
            size, (heads, heads, heads), dtype, axes=("embed", "qkv"), bias=config.qkv_bias, std=std
        )  # fmt: skip
        self.out = Linear(heads, size, dtype, axes=("heads", "embed"), bias=config.out_bias, std=config.out_std)

    def __call__(
        self, x: jax.Array, bias: Bias, step: AnyStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache. bias: [H, 2 * W + 1] with an EncodeStep, [H, W + 1] with the others."""
        q, k, v = (part.reshape(x.shape[0], -1, self.head_dim) for part in self.qkv.split(x))
        if isinstance(step, EncodeStep):
            mixed = attend_whole(q, k, v, step, scale=self.scale, position_bias=bias)
        else:
            mixed, cache = attend(q, k, v, step, cache, scale=self.scale, position_bias=bias)
        return self.out(mixed.reshape(x.shape[0], -1)), cache


class CrossAttention(nnx.Module):
    """The decoder's queries over the source's keys and values."""

    def __init__(self, config: ModelConfig, dtype: Dtype):
        size, heads, std = config.hidden_size, config.num_heads * config.head_dim, config.initializer_range
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.q = Linear(size, heads, dtype, axes=("embed", "qkv"), bias=config.qkv_bias, std=std)
        self.kv = Linear(size, (heads, heads), dtype, axes=("embed", "qkv"), bias=config.qkv_bias, std=std)
        self.out = Linear(heads, size, dtype, axes=("heads", "embed"), bias=config.out_bias, std=config.out_std)

    def __call__(self, x: jax.Array, step: Step | DenseStep, source: CrossCache | Encoded) -> jax.Array:
        """x [T, E] -> [T, E]. source: the cache with a Step, what the encoder made with a DenseStep."""
        q = self.q(x).reshape(x.shape[0], -1, self.head_dim)
        if isinstance(step, Step):
            assert isinstance(source, CrossCache)
            mixed = attend_source(q, step, source, scale=self.scale)
        else:
            assert isinstance(source, Encoded)
            mixed = attend_source_dense(q, *self.heads(source.hidden), step, source.query_start, scale=self.scale)
        return self.out(mixed.reshape(x.shape[0], -1))

    def heads(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """encoded [S, E] -> keys and values, each [S, H, D]."""
        k, v = (part.reshape(encoded.shape[0], -1, self.head_dim) for part in self.kv.split(encoded))
        return k, v


class Block(nnx.Module):
    """Attention to its own sequence, in a decoder then to the source, and an MLP, each added to what it reads."""

    def __init__(self, config: ModelConfig, dtype: Dtype, norm_class: type[Norm], family: EncoderDecoderConfig):
        size, eps = config.hidden_size, config.norm_eps
        mlp_class = GatedMLP if family.gated else MLP
        self.norm_first = family.norm_first
        self.attention_norm = norm_class(size, eps, dtype)
        self.attention = SelfAttention(config, dtype)
        self.cross_norm = norm_class(size, eps, dtype) if config is family else None
        self.cross = CrossAttention(config, dtype) if config is family else None
        self.mlp_norm = norm_class(size, eps, dtype)
        self.mlp = mlp_class(
            size, config.intermediate_size, config.activation, dtype,
            bias=config.mlp_bias, std=config.initializer_range, out_std=config.out_std,
        )  # fmt: skip

    def __call__(
        self,
        x: jax.Array,
        bias: Bias,
        step: AnyStep,
        encoded: Encoded | None,
        cache: tuple[PagedCache, CrossCache] | None,
    ) -> tuple[jax.Array, tuple[PagedCache | None, CrossCache] | None]:
        """x [T, E] -> [T, E], cache. encoded: a DenseStep's sources; a Step's are in the cache."""
        own, source = (None, encoded) if cache is None else cache
        mixed, own = self.attention(self.before(self.attention_norm, x), bias, step, own)
        x = self.after(self.attention_norm, x + mixed)
        if self.cross is not None and self.cross_norm is not None:
            assert not isinstance(step, EncodeStep)
            assert source is not None
            mixed = self.cross(self.before(self.cross_norm, x), step, source)
            x = self.after(self.cross_norm, x + mixed)
        x = self.after(self.mlp_norm, x + self.mlp(self.before(self.mlp_norm, x)))
        return x, None if cache is None else (own, cache[1])

    def before(self, norm: Norm, x: jax.Array) -> jax.Array:
        return norm(x) if self.norm_first else x

    def after(self, norm: Norm, x: jax.Array) -> jax.Array:
        return x if self.norm_first else norm(x)


class EncoderDecoder(CausalLM):
    """Base of the families. A subclass says how tokens become hidden states, in the encoder and in the decoder."""

    norm_class: ClassVar[type[Norm]] = LayerNorm
    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig, dtype: Dtype):
        super().__init__(config, dtype)
        self.encoder_layers, self.layers = (
            nnx.List(Block(stack, dtype, self.norm_class, config) for _ in range(stack.num_layers))
            for stack in (config.encoder, config)
        )

    def encode(self, step: EncodeStep) -> Encoded:
        """What the encoder makes of whole sources."""
        raise NotImplementedError

    def read(self, encoded: Encoded, cache: Cache) -> Cache:
        """The cache with the sources' keys and values in every decoder layer, where its CrossCaches say."""
        new = []
        for layer, own_and_cross in zip(self.layers, cache, strict=True):
            assert isinstance(own_and_cross, tuple)
            own, cross = own_and_cross
            assert isinstance(cross, CrossCache)
            k, v = layer.cross.heads(encoded.hidden)
            new.append((own, write_source(k, v, cross)))
        return tuple(new)

    def __call__(
        self, step: Step | DenseStep, cache: Cache | None, sources: EncodeStep | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the step's tokens through the decoder. sources: a DenseStep's, one for each of its sequences."""
        raise NotImplementedError

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        sizes = self.config.num_kv_heads, self.config.head_dim
        return ((PagedKV(*sizes), CrossKV(*sizes)),) * self.config.num_layers
