"""Cases of ragged_attention: many short rows and long ones, odd heads and head dims, windows both ways, biases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal


@dataclass(frozen=True)
class RaggedCase:
    """lengths: of the rows, 0 for padding rows; bias: how far the position bias tells distances apart."""

    name: str
    lengths: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 4
    dim: int = 64
    causal: bool = False
    window: int | None = None
    soft_cap: float | None = None
    bias: int | None = None
    padding: int = 0  # tokens behind the last row
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Padding tokens are NaN."""
        tokens = sum(self.lengths)
        shape = (tokens + self.padding, self.heads + 2 * self.kv_heads, self.dim)
        packed = normal(rng, *shape)
        packed[:, : self.heads] *= 2
        packed[tokens:] = np.nan
        q, k, v = np.split(packed.astype(dtype), [self.heads, self.heads + self.kv_heads], axis=1)
        start = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)
        options: dict[str, Any] = {
            "scale": self.dim**-0.5,
            "causal": self.causal,
            "window": self.window,
            "soft_cap": self.soft_cap,
            "position_bias": None,
        }
        if self.bias is not None:
            options["position_bias"] = rng.normal(size=(self.heads, 2 * self.bias + 1)).astype(np.float32) * 2
        return [q, k, v, start], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Textbook softmax attention, a row and a head at a time."""
        q, k, v, start = operands
        out = np.zeros(q.shape)
        for row, length in enumerate(self.lengths):
            if not length:
                continue
            tokens = slice(start[row], start[row + 1])
            distance = np.arange(length)[None, :] - np.arange(length)[:, None]
            hidden = (distance > 0) & self.causal
            if self.window is not None:
                hidden |= np.abs(distance) >= self.window
            for head in range(self.heads):
                kv_head = head // (self.heads // self.kv_heads)
                queries, keys, values = (
                    array[tokens, h].astype(np.float64) for array, h in ((q, head), (k, kv_head), (v, kv_head))
                )
                scores = queries @ keys.T * options["scale"]
                if self.soft_cap is not None:
                    scores = self.soft_cap * np.tanh(scores / self.soft_cap)
                if self.bias is not None:
                    offset = np.clip(distance, -self.bias, self.bias) + self.bias
                    scores += options["position_bias"][head].astype(np.float64)[offset]
                np.copyto(scores, -np.inf, where=hidden)
                scores -= scores.max(axis=1, keepdims=True)
                weights = np.exp(scores, out=scores)
                out[tokens, head] = weights @ values / weights.sum(axis=1, keepdims=True)
        return [out]


CASES = (
    RaggedCase("short", (3, 20, 1, 17, 64, 40), padding=5),
    RaggedCase("nothing", (0, 0), padding=9),
    RaggedCase("padding-rows-group-7-dim-16", (41, 0, 30, 0, 0), heads=14, kv_heads=2, dim=16, padding=3),
    RaggedCase("long-dim-128", (300, 5, 129), heads=2, kv_heads=1, dim=128),
    RaggedCase("causal-long-group-4", (270, 1, 33), heads=4, kv_heads=1, causal=True, padding=2),
    RaggedCase("group-3-dim-80", (70, 7), heads=6, kv_heads=2, dim=80),
    RaggedCase("dim-256", (66, 9), heads=2, kv_heads=1, dim=256),
    RaggedCase("window", (150, 12, 40), heads=2, kv_heads=2, window=20, padding=4),
    RaggedCase("window-1-dim-32", (70, 2), dim=32, window=1),
    RaggedCase("window-without-end", (70, 2), window=2**31 - 1),
    RaggedCase("window-without-end-causal", (70, 2), window=2**31 - 1, causal=True),
    RaggedCase("window-long", (260, 140), heads=2, kv_heads=1, window=129),
    RaggedCase("window-causal-dim-48", (150, 12, 40), heads=2, kv_heads=1, dim=48, window=20, causal=True),
    RaggedCase("soft-cap-dim-72", (70, 9), heads=2, kv_heads=2, dim=72, soft_cap=2.0),
    RaggedCase("soft-cap-window-causal", (70, 9), soft_cap=5.0, window=33, causal=True),
    RaggedCase("bias", (75, 0, 9), bias=8, padding=3),
    RaggedCase("bias-far", (280, 3), heads=2, kv_heads=2, bias=40),
    RaggedCase("bias-wide-dim-96", (70, 9), heads=2, kv_heads=2, dim=96, bias=128),
    RaggedCase("bias-0", (30, 9), bias=0),
    RaggedCase("bias-causal-group-2", (75, 9), kv_heads=2, bias=8, causal=True),
    RaggedCase("bias-window-soft-cap-group-3", (130, 9), heads=6, kv_heads=2, bias=8, window=50, soft_cap=5.0),
    RaggedCase(
        "short-large", tuple(20 + 7 * i % 41 for i in range(400)), heads=16, kv_heads=16, padding=99, large=True
    ),
    RaggedCase("long-large", (1800, 1, 1100), heads=8, kv_heads=2, dim=128, large=True),
    RaggedCase("long-dim-80-large", (1500, 900), heads=16, kv_heads=16, dim=80, large=True),
    RaggedCase("causal-large", (1700, 700), heads=8, kv_heads=2, dim=128, causal=True, padding=60, large=True),
    RaggedCase("window-large", (1700, 500, 1), heads=8, kv_heads=8, dim=64, window=64, large=True),
    RaggedCase("bias-large", (1500, 30, 200), heads=16, kv_heads=16, dim=64, bias=128, large=True),
)
