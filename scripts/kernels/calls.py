"""Calls to check, drawn and computed in numpy alone: what enters an operation and what it has to return.

Runs in processes of its own: references of many small steps would wait for the interpreter while kernels compile.
"""

import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from pallas_kernels.case import Case

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


@dataclass(frozen=True)
class Call:
    """A case of an operation in one type."""

    operation: str
    dtype: str
    name: str

    @property
    def case(self) -> Case:
        """The operation's case of that name."""
        [case] = [case for case in cases(self.operation) if case.name == self.name]
        return case


@dataclass(frozen=True)
class Prepared:
    """A call whose operands and results are kept in a file; shapes: (shape, dtype) of each operand, None for none."""

    path: Path
    shapes: list[tuple[tuple[int, ...], np.dtype] | None]
    options: dict[str, Any]

    def load(self) -> tuple[list[np.ndarray | None], list[np.ndarray]]:
        """The operands and the expected results; the file goes."""
        with self.path.open("rb") as file:
            operands, expected = pickle.load(file)
        self.path.unlink()
        return operands, expected


def cases(operation: str) -> tuple[Case, ...]:
    """All cases of an operation."""
    found: tuple[Case, ...] = importlib.import_module(f"pallas_kernels.{operation}.shapes").CASES
    return found


def prepare(call: Call, path: Path) -> Prepared:
    """Draws fresh operands, computes what must come out, and writes both to `path`."""
    operands, options = call.case.arguments(np.random.default_rng(), DTYPES[call.dtype])
    with path.open("wb") as file:
        pickle.dump((operands, call.case.expected(operands, options)), file, protocol=5)
    return Prepared(path, [None if x is None else (x.shape, x.dtype) for x in operands], options)
