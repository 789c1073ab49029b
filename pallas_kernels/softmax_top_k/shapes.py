"""Cases of softmax_top_k: few experts and many, all of them chosen, padding tokens of NaN, every norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TopKCase:
    """padding: of the tokens, at the end; None gives no mask; equal: logits are few whole numbers."""

    name: str
    tokens: int
    experts: int
    top_k: int
    norm: float | None = 1.0
    least: float = 0.0
    scale: float = 1.0
    padding: int | None = None
    equal: bool = False
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Logits are float32 whatever the model's type; those of padding are NaN."""
        logits = rng.normal(size=(self.tokens, self.experts)).astype(np.float32) * 4
        if self.equal:
            logits = np.round(logits / 4)
        options = {"top_k": self.top_k, "norm": self.norm, "least": self.least, "scale": self.scale}
        if self.padding is None:
            return [logits], options
        real = np.arange(self.tokens) < self.tokens - self.padding
        logits[~real] = np.nan
        return [logits, real], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """A stable sort."""
        logits = operands[0].astype(np.float64)
        real = operands[1] if len(operands) > 1 else np.ones(self.tokens, bool)
        ids = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k].astype(np.int32)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights = np.take_along_axis(shares / shares.sum(axis=1, keepdims=True), ids, axis=1)
        if self.norm is not None:
            weights /= np.maximum(np.linalg.norm(weights, ord=self.norm, axis=1, keepdims=True), self.least)
        ids[~real] = -1
        weights[~real] = 0.0
        return [ids, (weights * self.scale).astype(np.float32)]


CASES = (
    TopKCase("one-token", 1, 8, 2),
    TopKCase("qwen3", 9, 128, 8, padding=3),
    TopKCase("all-chosen", 5, 4, 4, norm=None),
    TopKCase("one-expert", 3, 1, 1, padding=0),
    TopKCase("odd-experts", 37, 60, 6, norm=2.0, scale=2.5),
    TopKCase("least", 6, 64, 6, norm=1.0, least=0.9),
    TopKCase("all-padding", 4, 16, 4, padding=4),
    TopKCase("equal", 20, 40, 5, norm=None, equal=True),
    TopKCase("prefill-large", 8192, 128, 8, padding=100, large=True),
    TopKCase("many-experts-large", 500, 512, 10, norm=None, large=True),
)
