"""Cases of rms_norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class NormCase:
    """x of a shape and a scale; eps matters where the scale is small."""

    name: str
    shape: tuple[int, ...]
    scale: float = 1.0
    eps: float = 1e-6
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """x and weight in dtype."""
        x = rng.normal(size=self.shape) * self.scale
        return [x.astype(dtype), rng.normal(size=self.shape[-1:]).astype(dtype)], {"eps": self.eps}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """The definition, in float64."""
        x, weight = (a.astype(np.float64) for a in operands)
        return [x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.eps) * weight]


CASES = (
    NormCase("vector", (64,)),
    NormCase("tokens", (5, 96)),
    NormCase("heads", (5, 3, 80)),
    NormCase("tiny", (3, 64), scale=1e-3, eps=1e-5),
    NormCase("zeros", (2, 32), scale=0.0),
    NormCase("large", (1000, 4096), large=True),
)
