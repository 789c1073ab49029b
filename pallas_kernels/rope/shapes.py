"""Cases of rope."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RopeCase:
    """T tokens of H heads of D at random positions."""

    name: str
    tokens: int
    heads: int
    dim: int
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """x in dtype, angles as float32 cosines and sines."""
        x = rng.normal(size=(self.tokens, self.heads, self.dim)).astype(dtype)
        return [x, *rotations(rng, self.tokens, self.dim)], {}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Each pair as a complex number, turned."""
        return [rotate(*operands)]


def rotations(rng: np.random.Generator, tokens: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, D/2] float32 of random positions, base 10,000."""
    angle = rng.integers(0, 5000, (tokens, 1)) * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x: [T, H, D] -> float64."""
    half = x.shape[-1] // 2
    x = x.astype(np.float64)
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin.astype(np.float64))[:, None]
    return np.concatenate([turned.real, turned.imag], axis=-1)


CASES = (
    RopeCase("one", 1, 1, 8),
    RopeCase("odd", 5, 3, 80),
    RopeCase("usual", 17, 8, 128),
    RopeCase("large", 3000, 32, 128, large=True),
)
