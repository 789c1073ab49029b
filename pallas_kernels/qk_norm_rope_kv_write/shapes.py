"""Cases of qk_norm_rope_kv_write: with and without each of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.kv_write.shapes import WriteCase
from pallas_kernels.rope.shapes import rotate, rotations


@dataclass(frozen=True)
class NormRopeWriteCase:
    """A WriteCase whose tokens also have `heads` query heads, of which `turned` numbers turn (None: all)."""

    heads: int
    write: WriteCase
    norm: bool = False
    turned: int | None = None
    interleaved: bool = False
    eps: float = 1e-5

    @property
    def name(self) -> str:
        """That of the write."""
        return self.write.name

    @property
    def large(self) -> bool:
        """As the write is."""
        return self.write.large

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """The write's operands, queries, angles; weights among the options."""
        (k_pages, v_pages, k, v, index), _ = self.write.arguments(rng, dtype)
        dim = self.write.dim
        q = rng.normal(size=(len(index), self.heads, dim)).astype(dtype)
        turned = dim if self.turned is None else self.turned
        angles = list(rotations(rng, len(index), turned)) if turned else [None, None]
        options: dict[str, Any] = {"eps": self.eps, "interleaved": self.interleaved}
        if self.norm:
            options |= {name: rng.normal(size=dim).astype(dtype) for name in ("q_weight", "k_weight")}
        return [np.concatenate([q, k, v], axis=1), *angles, k_pages, v_pages, index], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Norm, rotation and write one after the other."""
        qkv, cos, sin, k_pages, v_pages, index = operands
        q, k, v = np.split(qkv, [self.heads, self.heads + self.write.kv_heads], axis=1)
        q, k = (self._place(x, options.get(name), cos, sin) for x, name in ((q, "q_weight"), (k, "k_weight")))
        return [q, *self.write.expected([k_pages, v_pages, k, v, index], options)]

    def _place(
        self, x: np.ndarray, weight: np.ndarray | None, cos: np.ndarray | None, sin: np.ndarray | None
    ) -> np.ndarray:
        x = x.astype(np.float64)
        if weight is not None:
            x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.eps) * weight.astype(np.float64)
        if cos is None or sin is None:
            return x
        size = 2 * cos.shape[1]
        order = np.arange(size)
        if self.interleaved:
            order = order.reshape(-1, 2).T.reshape(-1)  # where the halves lie
        x[..., order] = rotate(x[..., order], cos, sin)
        return x


CASES = (
    NormRopeWriteCase(4, WriteCase("one", 1)),
    NormRopeWriteCase(6, WriteCase("padded", 5, padding=11)),
    NormRopeWriteCase(9, WriteCase("odd", 13, padding=3, page=8, kv_heads=3, dim=80)),
    NormRopeWriteCase(40, WriteCase("many-heads", 3, kv_heads=8, dim=128)),
    NormRopeWriteCase(1, WriteCase("dim-8", 7, page=64, kv_heads=1, dim=8)),
    NormRopeWriteCase(4, WriteCase("norm", 5, padding=3), norm=True),
    NormRopeWriteCase(9, WriteCase("norm-odd", 5, kv_heads=3, dim=80), norm=True, eps=1e-2),
    NormRopeWriteCase(4, WriteCase("norm-partial", 5, padding=3), norm=True, turned=24),
    NormRopeWriteCase(4, WriteCase("norm-alone", 5, padding=3, dim=80), norm=True, turned=0),
    NormRopeWriteCase(4, WriteCase("write-alone", 5, padding=3), turned=0),
    NormRopeWriteCase(4, WriteCase("partial", 5, padding=3, dim=80), turned=32),
    NormRopeWriteCase(4, WriteCase("interleaved", 5, padding=3), interleaved=True),
    NormRopeWriteCase(4, WriteCase("interleaved-partial-norm", 5, dim=80), interleaved=True, turned=20, norm=True),
    NormRopeWriteCase(32, WriteCase("large", 4000, padding=96, pages=200, page=64, kv_heads=8, dim=128, large=True)),
    NormRopeWriteCase(
        32, WriteCase("large-norm", 4000, padding=96, pages=200, page=64, kv_heads=8, dim=128, large=True), norm=True
    ),
)
