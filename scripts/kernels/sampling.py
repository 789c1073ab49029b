"""Sampling's filters to time, on the logits of a large vocabulary."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.timing import Timing
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
        """min_p, which the chain hands on, logits, top_k and top_p."""
        logits = self.spread * jax.random.normal(jax.random.key(0), (self.rows, self.vocabulary), jnp.float32)
        top_k, top_p = jnp.full(self.rows, self.top_k, jnp.int32), jnp.full(self.rows, self.top_p, jnp.float32)
        return [jnp.zeros(self.rows, jnp.float32), logits, top_k, top_p]

    def call(self, min_p: jax.Array, *operands: jax.Array) -> jax.Array:
        """The operation; 0 again, which the compiler cannot know."""
        threshold = sampling_threshold(*operands, min_p)
        return jnp.where(jnp.isnan(threshold), jnp.float32(1), min_p)


FILTERS = tuple(
    Filters(f"sampling_threshold B{rows} {label}", repeats, rows, top_k, top_p, spread)
    for rows, repeats in ((1, 100), (64, 50), (256, 20))
    for label, top_k, top_p, spread in (
        ("unfiltered", 0, 1.0, 3.0),
        ("top-k 50", 50, 1.0, 3.0),
        ("top-p 0.9", 0, 0.9, 3.0),
        ("top-k 50, top-p 0.9", 50, 0.9, 3.0),
        ("top-p 0.9, flat", 0, 0.9, 0.01),
    )
)
