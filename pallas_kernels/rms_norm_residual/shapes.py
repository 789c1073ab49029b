"""Cases of rms_norm_residual."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.rms_norm.shapes import CASES as NORM_CASES
from pallas_kernels.rms_norm.shapes import NormCase


@dataclass(frozen=True)
class NormResidualCase:
    """A NormCase whose x is the sum of two."""

    norm: NormCase

    @property
    def name(self) -> str:
        """That of the norm."""
        return self.norm.name

    @property
    def large(self) -> bool:
        """As the norm is."""
        return self.norm.large

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """x, residual and weight in dtype."""
        [x, weight], options = self.norm.arguments(rng, dtype)
        residual = (rng.normal(size=x.shape) * self.norm.scale).astype(dtype)
        return [x, residual, weight], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """The sum as the type keeps it, and its norm."""
        x, residual, weight = operands
        total = (x.astype(np.float64) + residual.astype(np.float64)).astype(x.dtype)
        return [*self.norm.expected([total, weight], options), total.astype(np.float64)]


CASES = (
    *map(NormResidualCase, NORM_CASES),
    NormResidualCase(NormCase("wide", (3, 5120))),
)
