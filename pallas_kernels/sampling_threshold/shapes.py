"""Cases of sampling_threshold: every filter and all of them, logits peaked, flat, tied and masked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal

_EVERY = (
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (50, 1.0, 0.0),
    (1 << 30, 1.0, 0.0),
    (0, 0.1, 0.0),
    (0, 0.9, 0.0),
    (0, 0.999, 0.0),
    (0, 1.0, 0.1),
    (0, 1.0, 1e-4),
    (7, 0.5, 0.0),
    (50, 0.9, 0.01),
)
_TEMPERATURES = (1.0, 0.5, 1.0, 2.0, 1.0)
_FEW = ((0, 1.0, 0.0), (50, 0.9, 0.05), (0, 0.95, 0.0))


@dataclass(frozen=True)
class ThresholdCase:
    """filters: top_k, top_p and min_p of the rows, in turn; spread: the logits' standard deviation; step: what they are
    multiples of, 0 for anything; masked: the share of -inf; huge: it is the lowest float32 instead."""

    name: str
    rows: int
    vocabulary: int
    filters: tuple[tuple[int, float, float], ...] = _FEW
    spread: float = 3.0
    step: float = 0.0
    masked: float = 0.0
    huge: bool = False
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Logits are float32 whatever the model's type; top_p and min_p are moved off what rounding could decide."""
        logits = self.spread * normal(rng, self.rows, self.vocabulary)
        if self.step:
            logits = np.round(logits / np.float32(self.step)) * np.float32(self.step)
        masked = rng.random(logits.shape) < self.masked
        masked[:, rng.integers(self.vocabulary)] = False
        logits[masked] = np.finfo(np.float32).min if self.huge else -np.inf
        chosen = [self.filters[row % len(self.filters)] for row in range(self.rows)]
        temperature = np.asarray([_TEMPERATURES[row % len(_TEMPERATURES)] for row in range(self.rows)], np.float32)
        top_k = np.asarray([top_k for top_k, _, _ in chosen], np.int32)
        top_p = np.asarray([top_p for _, top_p, _ in chosen], np.float32)
        min_p = np.asarray([min_p for _, _, min_p in chosen], np.float32)
        for row, values in enumerate(logits.astype(np.float64)):
            if min_p[row] > 0:
                min_p[row] = _clear_min_p(values, temperature[row], min_p[row])
            if top_p[row] < 1:
                kept = _likeliest(values, temperature[row], top_k[row], min_p[row])
                top_p[row] = _clear_top_p(kept, temperature[row], top_p[row])
        return [logits, temperature, top_k, top_p, min_p], {}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """By sorting. What nothing filters has no number to compare."""
        logits, *filters = operands
        thresholds = np.full(self.rows, np.nan, np.float32)
        for row, (temperature, top_k, top_p, min_p) in enumerate(zip(*filters, strict=True)):
            if 0 < top_k < self.vocabulary or top_p < 1 or min_p > 0:
                values = _likeliest(logits[row].astype(np.float64), temperature, top_k, min_p)
                if top_p < 1:
                    distinct, shares = _shares(values, temperature)
                    values = distinct[: 1 + np.searchsorted(np.cumsum(shares), np.float64(top_p))]
                thresholds[row] = values[-1]
        return [thresholds]


def _likeliest(values: np.ndarray, temperature: float, top_k: int, min_p: float) -> np.ndarray:
    """What min-p and top-k keep, the largest first."""
    values = -np.sort(-values[values > -np.inf])
    if min_p > 0:
        values = values[values >= values[0] + np.float64(temperature) * np.log(np.float64(min_p))]
    return values[values >= values[top_k - 1]] if 0 < top_k < len(values) else values


def _shares(values: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, the largest first, and the share of the mass that each has."""
    distinct, counts = np.unique(-values, return_counts=True)
    mass = counts * np.exp((distinct[0] - distinct) / np.float64(temperature))
    return -distinct, mass / mass.sum()


def _clear_top_p(values: np.ndarray, temperature: float, top_p: float) -> float:
    """A share near top_p, or below it, that is in the middle of a token's that is large enough to tell."""
    _, shares = _shares(values, temperature)
    until = np.cumsum(shares)
    last = min(int(np.searchsorted(until, top_p)), len(until) - 1)
    told = np.flatnonzero(shares[: last + 1] >= 5e-6)[-1]
    return float(until[told] - shares[told] / 2)


def _clear_min_p(values: np.ndarray, temperature: float, min_p: float) -> float:
    """A min_p near this one, or above it, whose logit is well between two of the values."""
    temperature = np.float64(temperature)
    distinct = -np.unique(-values[values > -np.inf])
    last = max(1, np.count_nonzero(distinct >= distinct[0] + temperature * np.log(min_p)))
    gaps = distinct - np.append(distinct[1:], -np.inf)
    told = np.flatnonzero(gaps[:last] >= 1e-4)
    if not len(told):
        return float(min_p)
    below = min(gaps[told[-1]], 0.1)
    return float(np.exp((distinct[told[-1]] - below / 2 - distinct[0]) / temperature))


CASES = (
    ThresholdCase("one-row", 1, 1000, filters=((50, 0.9, 0.0),)),
    ThresholdCase("few-tokens", 12, 17, filters=_EVERY),
    ThresholdCase("one-part", 12, 1000, filters=_EVERY),
    ThresholdCase("one-part-tied", 12, 4097, filters=_EVERY, step=0.5),
    ThresholdCase("parts", 12, 32003, filters=_EVERY),
    ThresholdCase("parts-flat", 12, 20000, filters=_EVERY, spread=0.01),
    ThresholdCase("parts-tied", 12, 17000, filters=_EVERY, step=0.25),
    ThresholdCase("parts-coarse", 3, 17000, step=4.0),
    ThresholdCase("parts-masked", 12, 17000, filters=_EVERY, masked=0.6),
    ThresholdCase("parts-few-left", 12, 17000, filters=_EVERY, masked=0.999),
    ThresholdCase("parts-huge", 3, 9000, masked=0.5, huge=True),
    ThresholdCase("vocabulary-large", 64, 131072, filters=_EVERY, large=True),
    ThresholdCase("odd-vocabulary-large", 64, 150001, filters=_EVERY, masked=0.1, large=True),
    ThresholdCase("flat-large", 64, 131072, filters=_EVERY, spread=0.01, large=True),
    ThresholdCase("tied-large", 64, 151936, filters=_EVERY, step=0.0625, large=True),
    ThresholdCase("widest-large", 16, 262144, filters=_EVERY, large=True),
    ThresholdCase("many-rows-large", 256, 32003, filters=_EVERY, large=True),
    ThresholdCase("none-large", 64, 151936, filters=_FEW[:1], large=True),
)
