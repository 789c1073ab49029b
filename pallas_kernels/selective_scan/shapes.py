"""Cases of selective_scan: odd numbers of channels, state sizes, rows that continue, rows without tokens, padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.causal_conv.shapes import Rows, decode, extend


@dataclass(frozen=True)
class ScanCase:
    """channels with a state of `size` each; single: the time steps are float32 whatever the type."""

    name: str
    rows: Rows
    channels: int = 40
    size: int = 16
    skip: bool = True
    single: bool = False
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[Any], dict[str, Any]]:
        """Padding tokens and the states of fresh rows are NaN; time steps and decays as Mamba's are."""
        tokens = self.rows.tokens
        x = rng.normal(size=(tokens, self.channels)).astype(dtype)
        dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), (tokens, self.channels)))
        dt = dt.astype(np.float32 if self.single else dtype)
        B, C = (rng.normal(size=(tokens, self.size)).astype(dtype) for _ in range(2))
        self.rows.poison(x, dt, B, C)
        A = -rng.uniform(0.5, 16, (self.channels, self.size)).astype(np.float32)
        D = rng.normal(size=self.channels).astype(np.float32) if self.skip else None
        index, start, fresh = self.rows.arguments(rng)
        states = self.rows.pool(rng, index, self.channels, self.size)
        return [x, dt, A, B, C, D, states, index, start, fresh], {"decode": self.rows.decode}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Row by row, token by token."""
        *floats, index, _, fresh = operands
        x, dt, A, B, C, D, states = (None if a is None else a.astype(np.float64) for a in floats)
        y, after = np.zeros(x.shape), states.copy()
        for row, span in self.rows.spans():
            state = np.zeros(A.shape) if fresh[row] else states[index[row]]
            for token in range(span.start, span.stop):
                state = state * np.exp(dt[token][:, None] * A) + np.outer(dt[token] * x[token], B[token])
                y[token] = state @ C[token] + (0 if D is None else D * x[token])
            after[index[row]] = state
        self.rows.blank(y, after)
        return [y, after.astype(np.float32)]


CASES = (
    ScanCase("decode-fresh", decode(1, 1, 1, fresh=(1,)), single=True),
    ScanCase("decode-padding-rows", decode(1, 0, 1, 0, fresh=(3,)), channels=33, skip=False),
    ScanCase("decode-size-64", decode(1, 1), size=64, channels=70),
    ScanCase("extend-one-token", extend(1)),
    ScanCase("extend-padding-rows", extend(3, 0, 0, 2, 0, fresh=(1,), padding=6), channels=33),
    ScanCase("extend-nothing", extend(0, padding=8)),
    ScanCase("extend-ragged", extend(37, 1, 18, 1, fresh=(0, 3)), channels=72),
    ScanCase("extend-one-long", extend(99, fresh=(0,), padding=7), channels=20, single=True),
    ScanCase("extend-size-64", extend(9, 12, fresh=(0,)), size=64, channels=40, skip=False),
    ScanCase("extend-size-24", extend(9, 5), size=24, channels=40),
    ScanCase("decode-large", decode(*[1] * 250, *[0] * 6, fresh=(7, 8)), channels=5120, large=True),
    ScanCase("extend-large", extend(1024, 1, 500, 0, 511, fresh=(0, 4), padding=100), channels=5120, large=True),
)
