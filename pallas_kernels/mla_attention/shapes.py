"""Cases of mla_attention: those of paged_attention with one KV head, whose values are the beginning of its keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.paged_attention.shapes import AttentionCase


@dataclass(frozen=True)
class LatentCase:
    """An AttentionCase of one KV head with head dim rank + turned."""

    attention: AttentionCase
    rank: int

    @property
    def name(self) -> str:
        """That of the attention."""
        return self.attention.name

    @property
    def large(self) -> bool:
        """As the attention is."""
        return self.attention.large

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Its queries and keys; whatever no query sees is NaN."""
        (q, k, _, table, start, kv_len), options = self.attention.arguments(rng, dtype)
        options = {"rank": self.rank, "scale": options["scale"], "decode": options["decode"]}
        return [q, k[:, :, 0], table, start, kv_len], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Attention with keys for values, of which the beginning is taken."""
        q, latents, table, start, kv_len = operands
        pages = latents[:, :, None]
        [out] = self.attention.expected([q, pages, pages, table, start, kv_len], options)
        return [out[..., : self.rank]]


def _case(
    name: str, *rows: tuple[int, int] | int, rank: int = 64, turned: int = 16, heads: int = 4, **facts: Any
) -> LatentCase:
    """Rows are (queries, kv_len); all of them plain kv_len: decode."""
    decode = isinstance(rows[0], int)
    pairs = tuple((min(1, row), row) if isinstance(row, int) else row for row in rows)
    return LatentCase(AttentionCase(name, pairs, decode, heads, 1, rank + turned, **facts), rank)


CASES = (
    _case("decode-one-token", 1),
    _case("decode-page-borders", 15, 16, 17, 0, 1, 33),
    _case("decode-all-padding", 0, 0, spare_pages=2),
    _case("decode-splits", 300, 0, 5, 131),
    _case("decode-heads-5", 40, 3, heads=5),
    _case("decode-heads-128", 150, 20, heads=128, page=64),
    _case("decode-rank-512", 70, 9, rank=512, turned=64, heads=16, page=64),
    _case("decode-rank-96", 40, 9, rank=96, turned=24),
    _case("extend-one-token", (1, 1)),
    _case("extend-ragged", (5, 5), (1, 40), (33, 70), (0, 0), (2, 100), padding=3),
    _case("extend-nothing", (0, 0), (0, 0), padding=16),
    _case("extend-rank-512", (9, 40), rank=512, turned=64, heads=16, page=64),
    _case("decode-large", *range(1, 4001, 333), 0, rank=512, turned=64, heads=128, page=64, large=True),
    _case("decode-large-few-heads", 20000, 300, rank=512, turned=64, heads=16, page=64, large=True),
    _case("extend-large", (200, 900), (130, 130), rank=512, turned=64, heads=128, page=64, large=True, padding=5),
)
