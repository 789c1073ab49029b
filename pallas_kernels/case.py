"""What an operation's shapes.py offers: cases that the test suite and scripts/check_kernels.py both run."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Case(Protocol):
    """One call of an operation, with what it must return."""

    @property
    def name(self) -> str:
        """Unique among the operation's cases."""

    @property
    def large(self) -> bool:
        """Too much for an interpreter; run on a GPU only."""

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[Any], dict[str, Any]]:
        """Fresh operands, None for one left out, and keyword arguments; what the operation must not read is NaN."""

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """The results in float64, from plain numpy; NaN where any value will do.

        One in float32 is a result that has that type whatever the operands' is.
        """


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Of a standard deviation of 1, in float32, which takes half the time and memory of float64."""
    return rng.standard_normal(shape, np.float32)
