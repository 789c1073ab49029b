"""Cases of paged_attention: odd heads, head dims, pages, lengths, windows and caps, on pools poisoned with NaN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.case import normal


@dataclass(frozen=True)
class AttentionCase:
    """rows: (queries, kv_len) of each row, (0, 0) for padding; decode rows are (1, kv_len) or (0, 0)."""

    name: str
    rows: tuple[tuple[int, int], ...]
    decode: bool = False
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    page: int = 16
    window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False
    sinks: bool = False
    bias: int | None = None  # how far the position bias tells distances apart
    padding: int = 0  # tokens behind the last row
    spare_pages: int = 1  # columns of the page table no row uses
    large: bool = False
    causal: bool = True

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Rows lie on shuffled pages; every value no query sees is NaN, page 0 and pages behind a window included."""
        used = [-(-kv_len // self.page) for _, kv_len in self.rows]
        pool = 1 + sum(used) + 3
        free = iter(1 + rng.permutation(pool - 1))
        table = np.zeros((len(self.rows), max(used) + self.spare_pages), np.int32)
        seen = np.zeros((pool, self.page), bool)
        for row, (queries, kv_len) in enumerate(self.rows):
            oldest = 0 if self.window is None else max(0, kv_len - queries - self.window + 1)
            for column in range(oldest // self.page, used[row]):
                table[row, column] = page = next(free)
                place = column * self.page + np.arange(self.page)
                seen[page] = (place >= oldest) & (place < kv_len)
        k, v = (normal(rng, pool, self.page, self.kv_heads, self.dim) for _ in range(2))
        k[~seen] = v[~seen] = np.nan
        counts = [count for count, _ in self.rows]
        tokens = len(self.rows) if self.decode else sum(counts) + self.padding
        q = normal(rng, tokens, self.heads, self.dim) * 2
        start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        kv_lens = np.array([kv_len for _, kv_len in self.rows], np.int32)
        options: dict[str, Any] = {
            "scale": self.dim**-0.5,
            "causal": self.causal,
            "window": self.window,
            "soft_cap": self.soft_cap,
            "decode": self.decode,
            "alibi_slopes": rng.uniform(0.01, 0.5, self.heads).astype(np.float32) if self.alibi else None,
            "sinks": rng.normal(size=self.heads).astype(np.float32) * 2 if self.sinks else None,
        }
        if self.bias is not None:
            options["position_bias"] = rng.normal(size=(self.heads, self.bias + 1)).astype(np.float32) * 2
        return [q.astype(dtype), k.astype(dtype), v.astype(dtype), table, start, kv_lens], options

    def expected(self, operands: Sequence[np.ndarray], options: dict[str, Any]) -> list[np.ndarray]:
        """Each row's keys and values laid out in order, then textbook softmax attention a head at a time."""
        q, k_pages, v_pages, table, start, _ = operands
        out = np.zeros(q.shape)
        for row, (queries, kv_len) in enumerate(self.rows):
            tokens = slice(row, row + queries) if self.decode else slice(start[row], start[row + 1])
            k, v = (
                np.nan_to_num(pages[table[row]].reshape(-1, self.kv_heads, self.dim)[:kv_len].astype(np.float64))
                for pages in (k_pages, v_pages)
            )
            place = np.arange(kv_len - queries, kv_len)[:, None]
            key = np.arange(kv_len)[None, :]
            hidden = key > place if self.causal else np.zeros((queries, kv_len), bool)
            if self.window is not None:
                hidden |= key <= place - self.window
            for head in range(self.heads if queries and kv_len else 0):
                kv_head = head // (self.heads // self.kv_heads)
                scores = q[tokens, head].astype(np.float64) @ k[:, kv_head].T * options["scale"]
                if self.soft_cap is not None:
                    scores = self.soft_cap * np.tanh(scores / self.soft_cap)
                if self.alibi:
                    scores += options["alibi_slopes"][head].astype(np.float64) * (key - place)
                if self.bias is not None:
                    behind = np.clip(place - key, 0, self.bias)
                    scores += options["position_bias"][head].astype(np.float64)[behind]
                np.copyto(scores, -np.inf, where=hidden)
                sink = float(options["sinks"][head]) if self.sinks else -np.inf
                top = np.maximum(scores.max(axis=1, keepdims=True), sink)
                scores -= top
                weights = np.exp(scores, out=scores)
                total = weights.sum(axis=1, keepdims=True) + np.exp(sink - top)
                out[tokens, head] = weights @ v[:, kv_head] / total
        return [out]


def _decode(name: str, *lengths: int, **facts: Any) -> AttentionCase:
    return AttentionCase(name, tuple((min(1, n), n) for n in lengths), decode=True, **facts)


def _extend(name: str, *rows: tuple[int, int], **facts: Any) -> AttentionCase:
    return AttentionCase(name, rows, **facts)


_RAGGED = ((70, 200), (0, 0), (1, 130), (130, 130), (64, 128), (1, 1), (900, 901))
CASES = (
    _decode("decode-one-token", 1),
    _decode("decode-page-borders", 15, 16, 17, 0, 1, 33),
    _decode("decode-source", 3, 0, 70, causal=False),
    _decode("decode-all-padding", 0, 0, spare_pages=2),
    _decode("decode-splits", 300, 0, 5, 131, page=16, dim=64),
    _decode("decode-splits-many-rows", 300, 131, 0, 400, 0, 1, 290, kv_heads=4),
    _decode("decode-splits-beyond-a-turn", 3, 0, 800, heads=16, kv_heads=1, dim=128, page=64, sinks=True),
    _decode("decode-splits-beyond-a-long-turn", 4400, 0, heads=2, kv_heads=1, page=64, window=4300),
    _decode("decode-page-64", 70, 200, 64, page=64, dim=128),
    _decode("decode-page-128", 130, 40, page=128, dim=64),
    _decode("decode-page-32-dim-80", 50, 3, page=32, dim=80),
    _decode("decode-dim-96-group-3", 40, 17, heads=6, dim=96),
    _decode("decode-dim-256", 33, 20, heads=2, kv_heads=1, dim=256),
    _decode("decode-dim-8", 20, 9, dim=8),
    _decode("decode-dim-16-no-groups", 20, 9, dim=16, heads=3, kv_heads=3),
    _decode("decode-group-16", 35, 2, heads=16, kv_heads=1),
    _decode("decode-group-7", 35, 2, heads=14),
    _decode("decode-window", 100, 5, 20, 21, 0, window=20),
    _decode("decode-window-1", 18, 1, window=1),
    _decode("decode-window-without-end", 90, 7, window=2**31 - 1),
    _decode("decode-window-long", 400, 7, window=290, page=32),
    _decode("decode-soft-cap", 40, 7, soft_cap=2.0),
    _decode("decode-window-soft-cap", 90, 7, window=33, soft_cap=5.0, heads=6, dim=128),
    _decode("decode-alibi", 300, 0, 5, 131, alibi=True),
    _decode("decode-alibi-window-soft-cap-group-3", 90, 0, 7, heads=6, window=33, soft_cap=5.0, alibi=True),
    _decode("decode-sinks", 40, 0, 5, sinks=True),
    _decode("decode-sinks-splits", 300, 0, 5, 131, sinks=True, heads=16, dim=64),
    _decode("decode-sinks-window-group-3", 400, 7, 0, window=290, sinks=True, heads=6),
    _decode("decode-sinks-alibi-soft-cap", 300, 7, sinks=True, alibi=True, soft_cap=5.0, dim=80),
    _decode("decode-bias", 40, 0, 5, bias=16),
    _decode("decode-bias-splits-no-groups", 300, 7, bias=128, heads=3, kv_heads=3),
    _decode("decode-bias-window-group-3", 400, 7, bias=8, window=290, heads=6),
    _extend("extend-one-token", (1, 1)),
    _extend("extend-one-page", (16, 16)),
    _extend("extend-page-and-one", (17, 17), padding=7),
    _extend("extend-padding-rows", (3, 3), (0, 0), (0, 0), padding=5),
    _extend("extend-nothing", (0, 0), (0, 0), padding=16),
    _extend("extend-ragged", (5, 5), (1, 40), (33, 70), (1, 1), (2, 100), padding=3),
    _extend("extend-source", (5, 40), (1, 9), (0, 0), (20, 3), (70, 33), (2, 0), causal=False, padding=3),
    _extend("extend-source-dim-80-capped", (33, 17), (3, 200), causal=False, dim=80, soft_cap=5.0, page=32),
    _extend("extend-chunk", (70, 150), (1, 64), page=64, dim=128),
    _extend("extend-page-128", (20, 150), page=128),
    _extend("extend-dim-80-group-3", (30, 45), (1, 9), heads=6, dim=80, page=32),
    _extend("extend-dim-256", (20, 33), (1, 20), heads=2, kv_heads=1, dim=256),
    _extend("extend-dim-8", (20, 25), (1, 9), dim=8),
    _extend("extend-dim-16-no-groups", (20, 25), heads=3, kv_heads=3, dim=16),
    _extend("extend-group-16", (9, 35), (1, 17), heads=16, kv_heads=1),
    _extend("extend-group-7", (40, 60), heads=14),
    _extend("extend-window", (60, 150), (1, 90), (10, 10), (9, 40), window=20, page=16, padding=2),
    _extend("extend-window-1", (20, 30), window=1),
    _extend("extend-window-without-end", (20, 30), window=2**31 - 1),
    _extend("extend-window-long", (40, 300), window=200, page=64),
    _extend("extend-soft-cap", (30, 45), (1, 20), soft_cap=2.0),
    _extend("extend-window-soft-cap", (50, 90), window=33, soft_cap=5.0, heads=6, dim=128),
    _extend("extend-alibi", (30, 45), (1, 20), (0, 0), alibi=True, padding=3),
    _extend("extend-alibi-window-soft-cap", (50, 90), window=33, soft_cap=5.0, alibi=True, heads=6),
    _extend("extend-sinks", (30, 45), (1, 20), (0, 0), sinks=True, padding=3),
    _extend("extend-sinks-window-group-8", (60, 150), (1, 90), window=20, sinks=True, heads=16),
    _extend("extend-sinks-alibi-soft-cap-dim-80", (40, 300), sinks=True, alibi=True, soft_cap=5.0, dim=80, page=64),
    _extend("extend-bias", (30, 45), (1, 20), (0, 0), bias=16, padding=3),
    _extend("extend-bias-far-window", (40, 300), bias=8, window=200, heads=6, page=64),
    _decode("decode-large", *range(1, 4001, 167), 0, 0, heads=32, kv_heads=8, dim=128, page=64, large=True),
    _decode("decode-large-one", 20000, heads=32, kv_heads=8, dim=128, page=64, large=True, spare_pages=200),
    _decode("decode-large-window", 5000, 1, 900, heads=16, kv_heads=8, dim=256, window=1024, large=True),
    _extend("extend-large", (700, 700), (400, 1700), (1, 4000), heads=32, kv_heads=8, dim=128, page=64, large=True),
    _extend(
        "extend-large-mixed",
        *((1, 25 * i) for i in range(1, 40)),
        (500, 1300),
        (0, 0),
        heads=32,
        kv_heads=8,
        dim=128,
        page=64,
        padding=85,
        large=True,
    ),
    _extend(
        "extend-large-window", (1300, 3000), (1, 900), heads=8, kv_heads=4, dim=256, window=1024, page=16, large=True
    ),
    _extend("extend-large-group-1", *_RAGGED, (257, 1000), heads=2, dim=64, page=128, padding=9, large=True),
    _extend("extend-large-group-3", *_RAGGED, (3, 500), heads=6, dim=64, page=64, padding=1, large=True),
    _extend("extend-large-group-8", *_RAGGED, (66, 66), heads=16, dim=128, page=64, large=True),
    _extend("extend-large-page-256", *_RAGGED, (300, 4096), heads=4, dim=128, page=256, padding=70, large=True),
)
