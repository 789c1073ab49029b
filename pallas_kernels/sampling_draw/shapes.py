"""Cases of sampling_draw: vocabularies of one block and of many, rows that are filtered, masked and greedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal
from pallas_kernels.sampling_draw import LANES, num_parts

_TEMPERATURES = (1.0, 0.0, 0.3, 2.0)
_KEPT = (0, 1, 30)


@dataclass(frozen=True)
class DrawCase:
    """spread: the logits' standard deviation; step: what they are multiples of, 0 for anything; masked: the share of
    -inf."""

    name: str
    rows: int
    vocabulary: int
    spread: float = 3.0
    step: float = 0.0
    masked: float = 0.0
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Logits are float32 whatever the model's type. Some rows keep all tokens, others one, or thirty."""
        logits = self.spread * normal(rng, self.rows, self.vocabulary)
        if self.step:
            logits = np.round(logits / np.float32(self.step)) * np.float32(self.step)
        masked = rng.random(logits.shape) < self.masked
        masked[:, rng.integers(self.vocabulary)] = False
        logits[masked] = -np.inf
        temperature = np.resize(np.asarray(_TEMPERATURES, np.float32), self.rows)
        kept = np.resize(_KEPT, self.rows)
        descending = -np.sort(-logits, axis=-1)
        lowest = np.where(kept > 0, descending[np.arange(self.rows), np.minimum(kept, self.vocabulary) - 1], -np.inf)
        seed = rng.integers(1 << 32, size=(self.rows, 2), dtype=np.uint32)
        counts = [rng.integers(1 << 20, size=self.rows, dtype=np.int32) for _ in range(2)]
        return [logits, lowest.astype(np.float32), temperature, seed, *counts], {}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Each row by itself, its tokens put in groups by number."""
        return [np.asarray([_token(*row) for row in zip(*operands, strict=True)], np.int32)]


def _token(
    logits: np.ndarray, lowest: float, temperature: float, seed: np.ndarray, sample_index: int, position: int
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    key = seed
    for folded in (sample_index, position):
        key = _threefry(key, np.asarray([folded]))[:, 0]
    token = np.arange(len(logits))
    block, lane = token // LANES, token % LANES
    parts = num_parts(len(logits))
    group = block % parts * LANES + lane
    mass = np.where(logits >= lowest, np.exp((logits.astype(np.float64) - logits.max()) / np.float64(temperature)), 0)
    of_group = np.bincount(group, mass)
    winner = int(np.argmax(of_group / _exponential(key, len(of_group))))
    members = token[group == winner]
    key = _threefry(key, np.asarray([winner | 1 << 31]))[:, 0]
    return int(members[np.argmax(mass[members] / _exponential(key, len(members)))])


def _exponential(key: np.ndarray, n: int) -> np.ndarray:
    bits = np.bitwise_xor(*_threefry(key, np.arange(n)))
    return -np.log1p(-(bits.astype(np.float64) + 0.5) * 2.0**-32)


def _threefry(key: np.ndarray, count: np.ndarray) -> np.ndarray:
    """threefry2x32 of 20 rounds, [2, N] uint32, of keys [2] and counts [N] whose high words are 0."""
    keys = [int(key[0]), int(key[1]), int(key[0]) ^ int(key[1]) ^ 0x1BD11BDA]
    x, y = np.full(len(count), keys[0], np.uint32), (count.astype(np.int64) + keys[1]).astype(np.uint32)
    for injection in range(1, 6):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[(injection + 1) % 2]:
            x = x + y
            y = x ^ (y << np.uint32(rotation) | y >> np.uint32(32 - rotation))
        x = (x + np.int64(keys[injection % 3])).astype(np.uint32)
        y = (y + np.int64(keys[(injection + 1) % 3] + injection)).astype(np.uint32)
    return np.stack([x, y])


CASES = (
    DrawCase("few-tokens", 12, 17),
    DrawCase("block", 12, 1024),
    DrawCase("blocks", 12, 9001),
    DrawCase("parts", 12, 32003, spread=0.1),
    DrawCase("parts-tied", 6, 50000, step=0.25),
    DrawCase("parts-masked", 6, 50000, masked=0.99),
    DrawCase("vocabulary-large", 64, 151936, large=True),
    DrawCase("flat-large", 64, 131072, spread=0.01, large=True),
    DrawCase("many-rows-large", 256, 32003, masked=0.5, large=True),
)
