"""The angles of rotary position embedding and the ways checkpoints stretch them over longer contexts.

Sources: Su et al. 2021; linear interpolation, Chen et al. 2023; YaRN, Peng et al. 2023; llama3, the reference
implementation in Hugging Face transformers.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np


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
class Rope:
    """Rotary embedding over the whole of head_dim, pairs split in halves."""

    head_dim: int
    theta: float = 10000.0
    scaling: Linear | Llama3 | Yarn | None = None

    def frequencies(self) -> np.ndarray:
        """[D/2] float32, radians per position."""
        plain = 1.0 / self.theta ** (np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        return (self.scaling.scale(plain, self.theta) if self.scaling else plain).astype(np.float32)

    def __call__(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """positions [T] int32 -> cos, sin, each [T, D/2] float32: computed once a step, used by every layer."""
        angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(self.frequencies())[None, :]
        factor = jnp.float32(self.scaling.attention_factor if self.scaling else 1.0)
        return jnp.cos(angles) * factor, jnp.sin(angles) * factor
