"""What every language model here is: tokens in, hidden states and cache out, logits on demand."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.core import LayerSpecs, PagedKV
from jaxllm.layers.cache import LayerCache
from jaxllm.layers.embed import Embed
from jaxllm.layers.linear import Linear
from jaxllm.layers.parameter import Dtype
from jaxllm.layers.residual import Stream, deferred, summed
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model

Cache = tuple[LayerCache, ...]

_HEADS = ("lm_head.weight", "embed_out.weight")


class CausalLM(Model):
    """Base of the families. A subclass adds its layers, and says how tokens become hidden states."""

    embed: Embed
    layers: nnx.List[Any]
    head: Callable[[jax.Array, Dtype], jax.Array] | None

    def __init__(self, config: ModelConfig, dtype: Dtype):
        """Builds what every family has, with abstract parameters of `dtype`."""
        super().__init__(config, dtype)
        size, std = config.hidden_size, config.initializer_range
        self.embed = Embed(config.vocab_size, size, dtype, std=std)
        head = Linear(size, config.vocab_size, dtype, axes=("embed", "vocab"), bias=config.head_bias, std=std)
        self.head = None if config.tie_word_embeddings else head

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        """Runs the step's tokens through the layers.

        cache: per layer what its cache_specs say, its pools donated by the caller, with a Step; None with a DenseStep.
        Returns the final norm's output [T, E], or [R, E] of a step with a tail, and the cache with this step's keys and
        values.
        """
        raise NotImplementedError

    @property
    def heeds_tail(self) -> bool:
        """Whether it may be called with a step that has a tail: the last layer then leaves out most of its work."""
        layer = self.layers[-1]
        calls = [type(part).__call__ for part in (self, layer, getattr(layer, "attention", None))]
        return all(getattr(call, "heeds_tail", False) for call in calls)

    def run_layers(
        self,
        x: jax.Array,
        cache: Cache | None,
        *shared: Any,
        each: Sequence[Any] | None = None,
        layers: Sequence[Any] | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """x [T, E] through every layer, called as layer(x, *shared, its cache). Unrolled: scans copy weights.

        A step's tail is for the last layer alone: the others' keys and values are of all tokens.
        each: what each layer is given of its own, between x and the shared arguments. layers: in place of the model's.
        """
        new: list[Any] = []
        stream: Stream = x
        layers = self.layers if layers is None else layers
        own = [()] * len(layers) if each is None else [(argument,) for argument in each]
        whole = tuple(dataclasses.replace(x, tail=False) if isinstance(x, Step) else x for x in shared)
        for layer, argument, layer_cache in zip(layers, own, cache or [None] * len(layers), strict=True):
            graphdef, state = nnx.split(layer)
            common = shared if layer is layers[-1] else whole
            given = deferred(stream) if getattr(type(layer).__call__, "defers_sum", False) else summed(stream)
            stream, layer_cache = _run_layer(graphdef, state, given, argument + common, layer_cache)
            new.append(layer_cache)
        return summed(stream), None if cache is None else tuple(new)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [..., E] -> [..., V] float32."""
        logits = self.embed.logits(hidden) if self.head is None else self.head(hidden, jnp.float32)
        logits = scaled(logits, self.config.logit_scale)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def drawable(self, logits: jax.Array) -> jax.Array:
        """logits [..., V] without the tokens that the family's own generation never draws."""
        return logits

    def cache_specs(self) -> tuple[LayerSpecs, ...]:
        """What each layer caches."""
        config = self.config
        return tuple(PagedKV(config.num_kv_heads, config.head_dim, window) for window in config.windows)

    def drafts(self, tensor: str) -> bool:
        """Whether a checkpoint's tensor belongs to the layers that draft tokens, which stand behind the model's own."""
        layer = re.search(r"layers\.(\d+)\.", tensor)
        return layer is not None and int(layer[1]) >= self.config.num_layers

    def ignores_tensor(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor although the model has no use for it."""
        tied = self.head is None and name.endswith(_HEADS)
        return tied or super().ignores_tensor(name)

    def repeats(self, name: str) -> str | None:
        tied = self.head is None and name.removeprefix(self.checkpoint_prefix) in _HEADS
        return "embed.table" if tied else super().repeats(name)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """x * factor, rounded once; x itself where the factor is 1, as it is in most families."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(
    graphdef: nnx.GraphDef, state: nnx.State, x: Stream, shared: tuple[Any, ...], cache: LayerCache | None
) -> tuple[Stream, LayerCache | None]:
    """One layer; layers of one make are traced and lowered once between them. XLA inlines the calls."""
    result: tuple[Stream, LayerCache | None] = nnx.merge(graphdef, state)(x, *shared, cache)
    return result
