"""Cases of causal_conv: rows shorter than the taps, rows that continue, rows without tokens, padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal

SPARE_ENTRIES = 3


@dataclass(frozen=True)
class Rows:
    """The rows of a step: counts of tokens, those numbered in `fresh` from a zero state, then padding tokens.

    A row of 0 is a padding row: it has entry 0, and in a decode one token as every row has.
    """

    counts: tuple[int, ...]
    fresh: tuple[int, ...] = ()
    decode: bool = False
    padding: int = 0

    @property
    def tokens(self) -> int:
        """Those of the step, padding tokens too."""
        return len(self.counts) if self.decode else sum(self.counts) + self.padding

    def arguments(self, rng: np.random.Generator) -> list[np.ndarray]:
        """index, query_start, fresh; each row's entry is one of its own, and SPARE_ENTRIES are nobody's."""
        entries = 1 + rng.permutation(len(self.counts) + SPARE_ENTRIES - 1)[: len(self.counts)]
        index = np.where(self.counts, entries, 0).astype(np.int32)
        # With decode it is not read.
        start = np.concatenate([[0], np.cumsum(self.counts)]) if not self.decode else np.full(len(self.counts) + 1, -1)
        return [index, start.astype(np.int32), np.isin(np.arange(len(self.counts)), self.fresh)]

    def pool(self, rng: np.random.Generator, index: np.ndarray, *shape: int) -> np.ndarray:
        """States of all entries, NaN where a row is fresh; [N, *shape] float32."""
        states = normal(rng, len(self.counts) + SPARE_ENTRIES, *shape)
        states[index[list(self.fresh)]] = np.nan
        return states

    def poison(self, *operands: np.ndarray) -> None:
        """Makes what padding tokens hold NaN."""
        for operand in operands:
            operand[self.tokens - self.padding :] = np.nan

    def spans(self) -> Iterator[tuple[int, slice]]:
        """The rows that have tokens and an entry of their own, each with its tokens."""
        starts = range(len(self.counts)) if self.decode else np.cumsum((0, *self.counts))
        for row, count in enumerate(self.counts):
            if count:
                yield row, slice(starts[row], starts[row] + count)

    def blank(self, y: np.ndarray, states: np.ndarray) -> None:
        """Leaves open what rows that share the sink of a decode yield and leave there."""
        if self.decode and 0 in self.counts:
            y[np.array(self.counts) == 0] = np.nan
            states[0] = np.nan


@dataclass(frozen=True)
class ConvCase:
    """channels convolved over `taps` tokens."""

    name: str
    rows: Rows
    channels: int = 40
    taps: int = 4
    bias: bool = True
    activation: str | None = "silu"
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[Any], dict[str, Any]]:
        """Padding tokens and the states of fresh rows are NaN; without a bias there are six operands."""
        x = rng.normal(size=(self.rows.tokens, self.channels)).astype(dtype)
        self.rows.poison(x)
        index, start, fresh = self.rows.arguments(rng)
        states = self.rows.pool(rng, index, self.channels, self.taps - 1).astype(dtype)
        weight = rng.normal(size=(self.channels, self.taps)).astype(dtype)
        bias = rng.normal(size=self.channels).astype(dtype) if self.bias else None
        options = {"activation": self.activation, "decode": self.rows.decode}
        return [x, states, weight, bias, index, start, fresh], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Row by row: each channel over its state and its tokens, tap by tap."""
        x, states, weight, bias, index, _, fresh = operands
        y, after = np.zeros(x.shape), states.astype(np.float64)
        for row, span in self.rows.spans():
            before = np.zeros(states.shape[1:]) if fresh[row] else states[index[row]].astype(np.float64)
            inputs = np.concatenate([before, x[span].T.astype(np.float64)], axis=1)
            for tap in range(self.taps):
                y[span] += (inputs[:, tap : tap + self.rows.counts[row]] * weight[:, tap, None].astype(np.float64)).T
            after[index[row]] = inputs[:, 1 - self.taps :]
            if bias is not None:
                y[span] += bias.astype(np.float64)
            if options["activation"] == "silu":
                y[span] /= 1 + np.exp(-y[span])
        self.rows.blank(y, after)
        return [y, after]


def decode(*counts: int, fresh: tuple[int, ...] = ()) -> Rows:
    """Rows of one token; 0 for a padding row."""
    return Rows(counts, fresh, decode=True)


def extend(*counts: int, fresh: tuple[int, ...] = (), padding: int = 0) -> Rows:
    """Rows of any number of tokens."""
    return Rows(counts, fresh, padding=padding)


CASES = (
    ConvCase("decode-fresh", decode(1, 1, 1, fresh=(1,))),
    ConvCase("decode-padding-rows", decode(1, 0, 1, 0, fresh=(3,)), channels=33),
    ConvCase("decode-three-taps", decode(1, 1, 1, 1, 1, fresh=(0, 4)), taps=3, channels=300),
    ConvCase("extend-one-token-fresh", extend(1, fresh=(0,), padding=3)),
    ConvCase("extend-short-rows", extend(1, 2, 3, 4, 1, 2, 3, fresh=(4, 5), padding=5)),
    ConvCase("extend-padding-rows", extend(3, 0, 0, 2, 0, fresh=(1,), padding=6), channels=33),
    ConvCase("extend-nothing", extend(0, 0, padding=8)),
    ConvCase("extend-ragged", extend(70, 1, 33, 1, 100, fresh=(0, 3)), channels=72),
    ConvCase("extend-two-taps", extend(9, 1, 40, fresh=(2,), padding=1), taps=2, activation=None),
    ConvCase("extend-three-taps", extend(2, 1, 40, fresh=(0,)), taps=3, bias=False),
    ConvCase("decode-large", decode(*[1] * 250, *[0] * 6, fresh=(7, 8)), channels=5376, large=True),
    ConvCase("extend-large", extend(2048, 1, 900, 0, 1047, fresh=(0, 4), padding=100), channels=5376, large=True),
)
