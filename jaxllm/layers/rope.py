"""The angles of rotary position embedding and the ways checkpoints stretch them over longer contexts.

Sources: Su et al. 2021; linear interpolation, Chen et al. 2023; YaRN, Peng et al. 2023; llama3, the reference
implementation in Hugging Face transformers; LongRoPE, Ding et al. 2024.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.rope import rope as rotate_halves

Rotation = tuple[jax.Array, jax.Array] | None
"""cos, sin of the step's positions: [T, D/2] float32 each; None where positions are not turned."""


@dataclass(frozen=True)
class Linear:
    """Positions divided by `factor`."""

    factor: float
    attention_factor: ClassVar[float] = 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3:
    """Long wavelengths divided by `factor`, short ones kept, a smooth passage between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    attention_factor: ClassVar[float] = 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class Yarn:
    """Interpolation by the number of turns within the original context, and warmer attention."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        half = len(frequencies)

        def place_of(turns: float) -> float:
            return half * math.log(self.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(theta)

        low, high = place_of(self.beta_fast), place_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        ramp = np.clip((np.arange(half) - low) / (high - low if high > low else 0.001), 0.0, 1.0)
        return frequencies * (ramp / self.factor + (1 - ramp))


@dataclass(frozen=True)
class LongRope:
    """A factor for each frequency: one set within the original context, another beyond it.

    Keys in the cache cannot be turned again when a text outgrows the original context, so one set serves every
    position: that of the longest text the model is run for.

    Attributes:
        short, long: [D/2] each.
        context: positions of the longest text.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_position_embeddings: int
    context: int
    attention_factor: float

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        beyond = self.context > self.original_max_position_embeddings
        return frequencies / np.asarray(self.long if beyond else self.short)


@dataclass(frozen=True)
class Rope:
    """Rotary embedding over the first head_dim numbers of each head.

    interleaved: number 2i is turned with number 2i + 1 (GPT-J), not with the one half of head_dim further on (NeoX).
    """

    head_dim: int
    theta: float = 10000.0
    scaling: Linear | Llama3 | Yarn | LongRope | None = None
    interleaved: bool = False

    def within(self, context: int) -> "Rope":
        """The rotation of a model that is run for texts of `context` positions at most."""
        if not isinstance(self.scaling, LongRope):
            return self
        return replace(self, scaling=replace(self.scaling, context=context))

    def frequencies(self) -> np.ndarray:
        """[D/2] float32, radians per position."""
        plain = 1.0 / self.theta ** (np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        return (self.scaling.scale(plain, self.theta) if self.scaling else plain).astype(np.float32)

    def __call__(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """positions [T] int32 -> cos, sin, each [T, D/2] float32: computed once a step, used by every layer."""
        angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(self.frequencies())[None, :]
        factor = jnp.float32(self.scaling.attention_factor if self.scaling else 1.0)
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Turns the first 2R numbers of each head by its token's angles and passes the others on.

    x: [T, H, D]; cos, sin: [T, R], R at most D/2. Returns [T, H, D] in x.dtype.
    """
    turned, passed = jnp.split(x, [2 * cos.shape[1]], axis=-1)
    if interleaved:
        turned = jnp.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)
    turned = rotate_halves(turned, cos, sin)
    if interleaved:
        turned = jnp.stack(jnp.split(turned, 2, axis=-1), axis=-1).reshape(turned.shape)
    return jnp.concatenate([turned, passed], axis=-1) if passed.shape[-1] else turned
