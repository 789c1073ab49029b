"""Cases of moe: one token to many, one expert to 128, experts nobody chose, assignments to none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal


@dataclass(frozen=True)
class MoECase:
    """tokens to `top_k` of the experts each; `popular` limits whom they choose; `padding` tokens choose none."""

    name: str
    tokens: int
    experts: int
    top_k: int
    embed: int = 48
    inner: int = 40
    activation: str = "silu"
    bias: bool = False
    popular: int | None = None
    padding: int = 0
    dropped: float = 0.0
    large: bool = False

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Experts nobody chose are NaN, as padding tokens and the weights of assignments to none are."""
        total = self.tokens + self.padding
        x = normal(rng, total, self.embed)
        x[self.tokens :] = np.nan
        ids = np.stack([rng.permutation(self.popular or self.experts)[: self.top_k] for _ in range(total)])
        ids[self.tokens :] = -1
        weights = rng.uniform(0.1, 1.0, (total, self.top_k))
        none = rng.uniform(size=ids.shape) < self.dropped
        ids[none] = self.experts + 3
        weights[ids >= self.experts] = np.nan
        weights[ids < 0] = np.nan
        width = self.inner if self.activation == "relu2" else 2 * self.inner
        shapes = [(self.embed, width), (self.inner, self.embed)]
        matrices = [normal(rng, self.experts, *shape) * np.float32(shape[0] ** -0.5) for shape in shapes]
        unread = np.setdiff1d(np.arange(self.experts), ids)
        for matrix in matrices:
            matrix[unread] = np.nan
        operands = [x.astype(dtype), *(matrix.astype(dtype) for matrix in matrices)]
        operands += [ids.astype(np.int32), weights.astype(np.float32)]
        if self.bias:
            operands.append((rng.normal(size=(self.experts, width)) * 3).astype(dtype))
            operands.append(rng.normal(size=(self.experts, self.embed)).astype(dtype))
        return operands, {"activation": self.activation}

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Expert by expert, over the tokens that chose it."""
        ids = operands[3]
        x, gate_up, down, _, weights, *biases = operands
        out = np.zeros(x.shape)
        for expert in range(self.experts):
            token, k = np.nonzero(ids == expert)
            if not len(token):
                continue
            hidden = x[token].astype(np.float64) @ gate_up[expert].astype(np.float64)
            if self.bias:
                hidden += biases[0][expert].astype(np.float64)
            result = _activated(self.activation, hidden) @ down[expert].astype(np.float64)
            if self.bias:
                result += biases[1][expert].astype(np.float64)
            out[token] += weights[token, k][:, None].astype(np.float64) * result
        return [out]


def _activated(activation: str, hidden: np.ndarray) -> np.ndarray:
    if activation == "relu2":
        return np.maximum(hidden, 0) ** 2
    gate, up = np.split(hidden, 2, axis=-1)
    if activation == "silu":
        return gate / (1 + np.exp(-gate)) * up
    if activation == "relu":
        return np.maximum(gate, 0) * up
    if activation == "gelu":
        return gate * 0.5 * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) * up
    if activation == "gelu_tanh":
        return gate * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


CASES = (
    MoECase("one-token", 1, 8, 2),
    MoECase("one-expert", 5, 1, 1),
    MoECase("one-of-128", 3, 128, 8, embed=24, inner=20),
    MoECase("empty-experts", 40, 8, 2, popular=3),
    MoECase("all-to-one", 37, 8, 1, popular=1),
    MoECase("padded", 9, 4, 3, padding=7),
    MoECase("all-padding", 0, 4, 2, padding=3),
    MoECase("dropped", 20, 6, 4, dropped=0.3),
    MoECase("odd", 33, 5, 4, embed=72, inner=36),
    MoECase("many", 290, 6, 4, embed=24, inner=20, padding=9, dropped=0.1),
    MoECase("gelu", 6, 4, 2, activation="gelu"),
    MoECase("gelu-tanh", 6, 4, 2, activation="gelu_tanh"),
    MoECase("relu", 6, 4, 2, activation="relu"),
    MoECase("relu2-ungated", 6, 4, 2, activation="relu2"),
    MoECase("relu2-biased", 40, 6, 3, activation="relu2", bias=True, embed=72, inner=36),
    MoECase("gpt-oss", 21, 4, 3, activation="clamped_swiglu", bias=True),
    MoECase("biased", 2, 8, 8, bias=True),
    MoECase("biased-padded", 1, 32, 4, bias=True, padding=1),
    MoECase("decode-large", 64, 128, 8, embed=512, inner=256, large=True),
    MoECase("prefill-large", 4000, 128, 8, embed=512, inner=384, padding=96, large=True),
    MoECase("few-experts-large", 300, 8, 2, embed=1024, inner=1792, bias=True, large=True),
)
