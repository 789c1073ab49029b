"""Cases of skinny_matmul: one row and more, sizes that no block divides, gated and not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal


@dataclass(frozen=True)
class MatmulCase:
    """x [rows, size] @ w [size, columns], or two of them side by side."""

    name: str
    rows: int
    size: int
    columns: int
    gated: bool = False
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """x and w in dtype."""
        x = normal(rng, self.rows, self.size).astype(dtype)
        w = normal(rng, self.size, self.columns * (2 if self.gated else 1)) * np.float32(self.size**-0.5)
        return [x, w.astype(dtype)], {"gated": self.gated}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """The definition, in float64."""
        x, w = (operand.astype(np.float64) for operand in operands)
        out = x @ w
        if self.gated:
            gate, other = np.split(out, 2, axis=1)
            out = gate / (1 + np.exp(-gate)) * other
        return [out]


CASES = (
    MatmulCase("row", 1, 128, 64),
    MatmulCase("row-odd", 1, 200, 50),
    MatmulCase("row-gated", 1, 700, 33, gated=True),
    MatmulCase("rows", 2, 256, 64),
    MatmulCase("rows-odd", 5, 130, 50),
    MatmulCase("rows-gated", 17, 192, 40, gated=True),
    MatmulCase("rows-64", 64, 128, 32),
    MatmulCase("large", 1, 4096, 6144, large=True),
    MatmulCase("large-gated", 1, 1024, 3072, gated=True, large=True),
    MatmulCase("large-rows", 64, 14336, 4096, large=True),
    MatmulCase("large-rows-gated", 8, 4096, 7168, gated=True, large=True),
)
