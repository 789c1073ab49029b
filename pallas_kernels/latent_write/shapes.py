"""Cases of latent_write: those of kv_write with one head, of which the keys alone are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.kv_write.shapes import WriteCase


@dataclass(frozen=True)
class LatentWriteCase:
    """A WriteCase of one head as wide as a latent."""

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
        """Its keys."""
        (pool, _, new, _, index), options = self.write.arguments(rng, dtype)
        return [pool[:, :, 0], new[:, 0], index], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Keys written beside themselves."""
        pool, new, index = operands
        pages, values = pool[:, :, None], new[:, None]
        result, _ = self.write.expected([pages, pages, values, values, index], options)
        return [result[:, :, 0]]


CASES = tuple(
    LatentWriteCase(
        WriteCase(name, tokens, padding=padding, page=page, pages=pages, kv_heads=1, dim=width, large=large)
    )
    for name, tokens, padding, page, pages, width, large in (
        ("one", 1, 0, 16, 9, 72, False),
        ("padded", 5, 11, 16, 9, 576, False),
        ("all-padding", 0, 4, 16, 9, 64, False),
        ("full", 128, 0, 16, 9, 40, False),
        ("large", 4000, 96, 64, 200, 576, True),
    )
)
