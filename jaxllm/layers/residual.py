"""The residual stream between layers, whose last sum is left to whoever reads it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Deferred(NamedTuple):
    """residual + x, not summed yet: the norm that reads it sums on its way, in one kernel (`norm.add(*stream)`).

    Attributes:
        x: [T, E], what the layer before adds.
        residual: [T, E], what it adds that to.
    """

    x: jax.Array
    residual: jax.Array


Stream = jax.Array | Deferred


def summed(stream: Stream) -> jax.Array:
    """[T, E]"""
    return stream.residual + stream.x if isinstance(stream, Deferred) else stream


def deferred(stream: Stream) -> Deferred:
    """The same for every layer, so that layers of one make are traced once: the first adds nothing to its tokens."""
    return stream if isinstance(stream, Deferred) else Deferred(jnp.zeros_like(stream), stream)


def defers_sum[F: Callable[..., Any]](call: F) -> F:
    """Marks a layer's __call__ that wants a Deferred in place of x [T, E]. Others, and those that take its place, are
    given the sum."""
    call.defers_sum = True  # type: ignore[attr-defined]
    return call
