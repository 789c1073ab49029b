"""Sampling to time, on the logits of a large vocabulary: its filters, and whole draws."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.timing import Timing
from pallas_kernels.sampling_draw import sampling_draw
from pallas_kernels.sampling_threshold import sampling_threshold


@dataclass(frozen=True)
class Filters(Timing):
    """sampling_threshold of Qwen3's vocabulary; spread: the logits' standard deviation."""

    rows: int
    top_k: int = 0
    top_p: float = 1.0
    spread: float = 3.0

    vocabulary = 151936

    @property
    def bytes(self) -> int:
        """The logits, if anything filters them, and the thresholds."""
        return 4 * self.rows * (self.vocabulary * (self.top_k > 0 or self.top_p < 1) + 1)

    @property
    def flops(self) -> int:
        """Comparisons are none."""
        return 0

    @functools.cached_property
    def arguments(self) -> list[Any]:
        """Temperatures, which the chain hands on, logits, top_k, top_p and min_p."""
        logits = self.spread * jax.random.normal(jax.random.key(0), (self.rows, self.vocabulary), jnp.float32)
        top_k, top_p = jnp.full(self.rows, self.top_k, jnp.int32), jnp.full(self.rows, self.top_p, jnp.float32)
        return [jnp.ones(self.rows, jnp.float32), logits, top_k, top_p, jnp.zeros(self.rows, jnp.float32)]

    def call(self, temperature: jax.Array, logits: jax.Array, *filters: jax.Array) -> jax.Array:
        """The operation; 1 again, which the compiler cannot know."""
        threshold = sampling_threshold(logits, temperature, *filters)
        return jnp.where(jnp.isnan(threshold), jnp.float32(2), temperature)


@dataclass(frozen=True)
class Draws(Filters):
    """The same, and a token drawn of each row."""

    @property
    def bytes(self) -> int:
        """The logits once, twice if anything filters them."""
        return super().bytes + 4 * self.rows * self.vocabulary

    def call(self, temperature: jax.Array, logits: jax.Array, *filters: jax.Array) -> jax.Array:
        """Both operations; 1 again, which the compiler cannot know."""
        lowest = sampling_threshold(logits, temperature, *filters)
        zeros = jnp.zeros(self.rows, jnp.int32)
        token = sampling_draw(logits, lowest, temperature, jnp.zeros((self.rows, 2), jnp.uint32), zeros, zeros)
        return jnp.where(token < 0, jnp.float32(2), temperature)


FILTERS = tuple(
    kind(f"{name} B{rows} {label}", repeats, rows, top_k, top_p, spread)
    for kind, name in ((Filters, "sampling_threshold"), (Draws, "draw"))
    for rows, repeats in ((1, 100), (64, 50), (256, 20))
    for label, top_k, top_p, spread in (
        ("unfiltered", 0, 1.0, 3.0),
        ("top-k 50", 50, 1.0, 3.0),
        ("top-p 0.9", 0, 0.9, 3.0),
        ("top-k 50, top-p 0.9", 50, 0.9, 3.0),
        ("top-p 0.9, peaked", 0, 0.9, 6.0),
        ("top-p 0.9, flat", 0, 0.9, 0.01),
    )
)
