"""What encoder-only families share: attention to both sides, layers without a cache, and the heads on top."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.core import Pooling
from jaxllm.layers.embed import Embed
from jaxllm.layers.encoder import attend_whole
from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import activate
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Constant, Dtype, Parameter, broadcast
from jaxllm.layers.rope import Rotation, rotate
from jaxllm.layers.step import EncodeStep
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.pooling import PoolingModel, Whose, read_classification, read_embedding


class EncoderAttention(nnx.Module):
    """Attention of every token to its whole sequence; queries, keys and values from one matmul."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        self.head_dim = config.head_dim
        self.window = config.windows[layer]
        size, std = config.hidden_size, config.initializer_range
        self.qkv = Linear(size, (size, size, size), dtype, axes=("embed", "qkv"), bias=config.qkv_bias, std=std)
        self.out = Linear(size, size, dtype, axes=("heads", "embed"), bias=config.out_bias, std=config.out_std)

    def __call__(self, x: jax.Array, rotation: Rotation, step: EncodeStep) -> jax.Array:
        """x [T, E] -> [T, E]."""
        q, k, v = (part.reshape(x.shape[0], -1, self.head_dim) for part in self.qkv.split(x))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        mixed = attend_whole(q, k, v, step, scale=self.head_dim**-0.5, window=self.window)
        return self.out(mixed.reshape(x.shape[0], -1))


class Transform(nnx.Module):
    """What a head may do before its last matmul: norm(activation(dense(x)))."""

    def __init__(self, size: int, activation: str, norm: LayerNorm | None, dtype: Dtype, *, bias: bool, std: float):
        self.activation = activation
        self.dense = Linear(size, size, dtype, axes=("embed", "mlp"), bias=bias, std=std)
        self.norm = norm

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [N, E] -> [N, E]."""
        x = activate(self.activation, self.dense(x))
        return x if self.norm is None else self.norm(x)


class ClassHead(nnx.Module):
    """A score for each class, of a sequence or of a token."""

    def __init__(self, config: ModelConfig, transform: Transform | None, dtype: Dtype):
        assert config.pooling is not None
        self.transform = transform
        self.out = Linear(
            config.hidden_size, config.pooling.size, dtype, axes=("embed", "classes"), bias=True,
            std=config.initializer_range,
        )  # fmt: skip

    def __call__(self, x: jax.Array, embed: Embed) -> jax.Array:
        """x [N, E] -> [N, classes] float32."""
        return self.out(x if self.transform is None else self.transform(x), jnp.float32)


class VocabularyHead(nnx.Module):
    """A logit for each token of the vocabulary: of what a masked token might have been."""

    def __init__(self, config: ModelConfig, transform: Transform, dtype: Dtype, *, bias: bool = True):
        self.transform = transform
        own = Linear(
            config.hidden_size, config.vocab_size, dtype, axes=("embed", "vocab"), std=config.initializer_range
        )
        self.out = None if config.tie_word_embeddings else own
        self.bias = Parameter((config.vocab_size,), dtype, axes=("vocab",), init=Constant(0.0)) if bias else None

    def __call__(self, x: jax.Array, embed: Embed) -> jax.Array:
        """x [N, E] -> [N, V] float32."""
        x = self.transform(x)
        logits = embed.logits(x) if self.out is None else self.out(x, jnp.float32)
        return logits if self.bias is None else logits + broadcast(self.bias[...].astype(jnp.float32), logits)


Head = ClassHead | VocabularyHead
Purpose = Literal["embed", "classify", "token_classify", "masked_lm"]


class Encoder(PoolingModel):
    """Base of the encoder-only families. A subclass says how tokens become hidden states, and which head is on top.

    made_for: what a class of the family does with the hidden states.
    """

    made_for: ClassVar[Purpose] = "embed"

    embed: Embed
    layers: nnx.List[Any]

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        config = cls.configure_encoder(fields, architecture)
        return replace(config, pooling=cls.read_pooling(fields, config))

    @classmethod
    def without_head(cls) -> "type[Encoder]":
        """The family's embedding model."""
        return next(kin for kin in cls.__mro__ if issubclass(kin, Encoder) and kin.made_for == "embed")

    @classmethod
    def configure_encoder(cls, fields: Fields, architecture: str) -> ModelConfig:
        """All of config.json but what the head is about."""
        raise NotImplementedError(f"{cls.__name__} must say how it reads a config.json")

    @classmethod
    def read_pooling(cls, fields: Fields, config: ModelConfig, classified: Whose = "cls") -> Pooling:
        """classified: whose hidden state a classification of the sequence rests on."""
        match cls.made_for:
            case "embed":
                return read_embedding(fields, config.hidden_size, "cls")
            case "classify":
                return read_classification(fields, classified)
            case "token_classify":
                return read_classification(fields, None)
            case "masked_lm":
                return Pooling(
                    task="token_classify", size=config.vocab_size, sequence=None, per_token=True, activation="none"
                )

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        self.embed = Embed(config.vocab_size, config.hidden_size, dtype, std=config.initializer_range)
        self.head = self.make_head(dtype)

    def make_head(self, dtype: Dtype) -> Head | None:
        """None in an embedding model, which yields the hidden states as they are."""
        return None

    def ignores_parameter(self, path: str) -> bool:
        return self.head is None and path.startswith("head.")

    def repeats(self, name: str) -> str | None:
        tied = isinstance(self.head, VocabularyHead) and self.head.out is None
        return "embed.table" if tied and name in self.checkpoint_names["head.out.kernel"].names else None

    def run_layers(self, x: jax.Array, rotations: Sequence[Rotation], step: EncodeStep) -> jax.Array:
        """x [T, E] through every layer, each with its own rotation. Unrolled: scans copy weights."""
        for layer, rotation in zip(self.layers, rotations, strict=True):
            graphdef, state = nnx.split(layer)
            x = _run_layer(graphdef, state, x, rotation, step)
        return x

    def outputs(self, hidden: jax.Array) -> jax.Array:
        if self.head is None:
            return hidden.astype(jnp.float32)
        return self.head(hidden.astype(self.embed.table.dtype), self.embed)


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(
    graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array, rotation: Rotation, step: EncodeStep
) -> jax.Array:
    """One layer; layers of one make are traced and lowered once between them. XLA inlines the calls."""
    result: jax.Array = nnx.merge(graphdef, state)(x, rotation, step)
    return result
