"""Cases of kv_write: scattered slots, padding into page 0, odd head counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class WriteCase:
    """tokens real tokens at distinct slots, then padding tokens that all go to slot 0."""

    name: str
    tokens: int
    padding: int = 0
    pages: int = 9
    page: int = 16
    kv_heads: int = 2
    dim: int = 64
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Pools and new values are random, padding's are NaN."""
        pools = [rng.normal(size=(self.pages, self.page, self.kv_heads, self.dim)).astype(dtype) for _ in range(2)]
        total = self.tokens + self.padding
        new = [rng.normal(size=(total, self.kv_heads, self.dim)).astype(dtype) for _ in range(2)]
        for values in new:
            values[self.tokens :] = np.nan
        slots = self.page + rng.permutation((self.pages - 1) * self.page)[: self.tokens]
        index = np.concatenate([slots, np.zeros(self.padding)]).astype(np.int32)
        return [*pools, *new, index], {}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """The pools with each token's slot replaced, slot by slot."""
        *pools_and_new, index = operands
        results = []
        for pool, new in zip(pools_and_new[:2], pools_and_new[2:], strict=True):
            result = pool.astype(np.float64)
            for token, slot in enumerate(index):
                result[slot // self.page, slot % self.page] = new[token]
            results.append(result)
        return results


CASES = (
    WriteCase("one", 1),
    WriteCase("padded", 5, padding=11),
    WriteCase("all-padding", 0, padding=4),
    WriteCase("full", 128, pages=9, page=16),
    WriteCase("odd", 13, padding=3, page=8, kv_heads=3, dim=80),
    WriteCase("dim-8", 7, page=64, kv_heads=1, dim=8),
    WriteCase("large", 4000, padding=96, pages=200, page=64, kv_heads=8, dim=128, large=True),
)
