"""Cases of rope_kv_write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.kv_write.shapes import WriteCase
from pallas_kernels.rope.shapes import rotate, rotations


@dataclass(frozen=True)
class RopeWriteCase:
    """A WriteCase whose tokens also have `heads` query heads."""

    heads: int
    write: WriteCase

    @property
    def name(self) -> str:
        """That of the write."""
        return self.write.name

    @property
    def large(self) -> bool:
        """As the write is."""
        return self.write.large

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The write's operands, queries and angles."""
        (k_pages, v_pages, k, v, index), _ = self.write.arguments(rng, dtype)
        q = rng.normal(size=(len(index), self.heads, self.write.dim)).astype(dtype)
        return [q, k, v, *rotations(rng, len(index), self.write.dim), k_pages, v_pages, index], {}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Rotation and write one after the other."""
        q, k, v, cos, sin, k_pages, v_pages, index = operands
        return [rotate(q, cos, sin), *self.write.expected([k_pages, v_pages, rotate(k, cos, sin), v, index], options)]


CASES = (
    RopeWriteCase(4, WriteCase("one", 1)),
    RopeWriteCase(6, WriteCase("padded", 5, padding=11)),
    RopeWriteCase(9, WriteCase("odd", 13, padding=3, page=8, kv_heads=3, dim=80)),
    RopeWriteCase(40, WriteCase("many-heads", 3, kv_heads=8, dim=128)),
    RopeWriteCase(1, WriteCase("dim-8", 7, page=64, kv_heads=1, dim=8)),
    RopeWriteCase(32, WriteCase("large", 4000, padding=96, pages=200, page=64, kv_heads=8, dim=128, large=True)),
)
