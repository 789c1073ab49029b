"""Cases of ssd: heads that share groups, head and state sizes, chunks cut at odd places, continued rows, padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.causal_conv.shapes import Rows, decode, extend


@dataclass(frozen=True)
class SSDCase:
    """heads of `dim` with a state of `size` per value; single: the time steps are float32 whatever the type."""

    name: str
    rows: Rows
    heads: int = 4
    dim: int = 32
    groups: int = 1
    size: int = 32
    skip: bool = True
    single: bool = False
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[Any], dict[str, Any]]:
        """Padding tokens and the states of fresh rows are NaN; time steps and decays as Mamba 2's are."""
        tokens = self.rows.tokens
        x = rng.normal(size=(tokens, self.heads, self.dim)).astype(dtype)
        dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.5), (tokens, self.heads)))
        dt = dt.astype(np.float32 if self.single else dtype)
        B, C = (rng.normal(size=(tokens, self.groups, self.size)).astype(dtype) for _ in range(2))
        self.rows.poison(x, dt, B, C)
        A = -rng.uniform(0.1, 16, self.heads).astype(np.float32)
        D = rng.normal(size=self.heads).astype(np.float32) if self.skip else None
        index, start, fresh = self.rows.arguments(rng)
        states = self.rows.pool(rng, index, self.heads, self.dim, self.size)
        return [x, dt, A, B, C, D, states, index, start, fresh], {"decode": self.rows.decode}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Row by row, token by token."""
        *floats, index, _, fresh = operands
        x, dt, A, B, C, D, states = (None if a is None else a.astype(np.float64) for a in floats)
        B, C = (np.repeat(a, self.heads // self.groups, axis=1) for a in (B, C))
        y, after = np.zeros(x.shape), states.copy()
        for row, span in self.rows.spans():
            state = np.zeros(states.shape[1:]) if fresh[row] else states[index[row]].copy()
            for t in range(span.start, span.stop):
                state *= np.exp(dt[t] * A)[:, None, None]
                state += (dt[t][:, None] * x[t])[:, :, None] * B[t][:, None, :]
                y[t] = (state @ C[t][:, :, None])[:, :, 0] + (0 if D is None else D[:, None] * x[t])
            after[index[row]] = state
        self.rows.blank(y, after)
        return [y, after.astype(np.float32)]


CASES = (
    SSDCase("decode-fresh", decode(1, 1, 1, fresh=(1,)), groups=2, single=True),
    SSDCase("decode-padding-rows", decode(1, 0, 1, 0, fresh=(3,)), skip=False, groups=4),
    SSDCase("decode-size-256", decode(1, 1), heads=2, dim=128, size=256, single=True),
    SSDCase("decode-dim-48-size-24", decode(1, 1), dim=48, size=24, groups=2),
    SSDCase("extend-one-token", extend(1)),
    SSDCase("extend-padding-rows", extend(3, 0, 0, 2, 0, fresh=(1,), padding=6), heads=3, size=16),
    SSDCase("extend-nothing", extend(0, 0, padding=8)),
    SSDCase("extend-ragged", extend(150, 1, 70, 1, 33, fresh=(0, 3)), heads=6, groups=3),
    SSDCase("extend-one-long", extend(301, fresh=(0,), padding=7), heads=2, single=True),
    SSDCase("extend-chunk-borders", extend(64, 128, 63, 65, 1, fresh=(1,)), heads=2, skip=False),
    SSDCase("extend-size-128", extend(70, 9, fresh=(0,)), heads=2, dim=64, size=128),
    SSDCase("extend-size-256", extend(70, 9, fresh=(1,)), heads=2, dim=128, size=256, single=True),
    SSDCase("extend-dim-48-size-24", extend(9, 75), dim=48, size=24, groups=2),
    SSDCase("decode-large", decode(*[1] * 58, *[0] * 6, fresh=(7, 8)), heads=80, dim=64, size=128, large=True),
    SSDCase(
        "extend-large",
        extend(640, 1, 300, 0, 261, 1, 1, fresh=(0, 4), padding=100),
        heads=80,
        dim=64,
        size=128,
        single=True,
        large=True,
    ),
    SSDCase("extend-large-groups", extend(700, 300, fresh=(1,)), heads=64, dim=64, size=128, groups=8, large=True),
)
