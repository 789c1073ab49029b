"""Calls of paged and ragged attention to time: decodes, extends, mixed steps, and rows without a cache."""

import functools
import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from kernels.timing import Timing, normal, starts
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.ragged_attention import ragged_attention


@dataclass(frozen=True)
class Paged(Timing):
    """paged_attention: rows of (queries, kv_len), heads of 128, pages of 64."""

    rows: tuple[tuple[int, int], ...]
    decode: bool = False
    heads: int = 32
    kv_heads: int = 8

    dim, page, max_pages = 128, 64, 520

    @property
    def bytes(self) -> int:
        """The keys and values, the queries and the result."""
        kv = sum(kv_len for _, kv_len in self.rows) * self.kv_heads
        return 2 * self.dim * 2 * (kv + sum(q for q, _ in self.rows) * self.heads)

    @property
    def flops(self) -> int:
        """The multiply-adds of both products, visible positions alone."""
        visible = sum(q * kv_len - q * (q - 1) // 2 for q, kv_len in self.rows)
        return 4 * self.heads * self.dim * visible

    @functools.cached_property
    def arguments(self) -> list[jax.Array]:
        """Rows lie on shuffled pages."""
        rng = np.random.default_rng(0)
        used = [-(-kv_len // self.page) for _, kv_len in self.rows]
        pages = iter(1 + rng.permutation(sum(used)))
        table = np.zeros((len(self.rows), self.max_pages), np.int32)
        for row, count in enumerate(used):
            table[row, :count] = list(itertools.islice(pages, count))
        start = starts(q for q, _ in self.rows)
        kv_len = np.array([kv_len for _, kv_len in self.rows], np.int32)
        pool = (1 + sum(used), self.page, self.kv_heads, self.dim)
        operands = normal([(int(start[-1]), self.heads, self.dim), pool, pool])
        return [*operands, *map(jnp.asarray, (table, start, kv_len))]

    def call(self, *operands: jax.Array) -> jax.Array:
        """The operation."""
        return paged_attention(*operands, scale=self.dim**-0.5, decode=self.decode)


@dataclass(frozen=True)
class Ragged(Timing):
    """ragged_attention: rows of so many tokens; bias: how far a position bias tells distances apart."""

    lengths: tuple[int, ...]
    heads: int = 16
    kv_heads: int = 16
    dim: int = 64
    causal: bool = False
    window: int | None = None
    bias: int = 0

    @property
    def bytes(self) -> int:
        """Queries, keys, values and the result, once."""
        return 2 * sum(self.lengths) * self.dim * 2 * (self.heads + self.kv_heads)

    @property
    def flops(self) -> int:
        """The multiply-adds of both products, visible positions alone."""
        visible = 0
        for length in self.lengths:
            reach = min(self.window or length, length)
            behind = length * reach - math.comb(reach, 2)
            visible += behind if self.causal else 2 * behind - length
        return 4 * self.heads * self.dim * visible

    @functools.cached_property
    def arguments(self) -> list[jax.Array]:
        """The call's operands."""
        start = starts(self.lengths)
        operands = normal([(int(start[-1]), heads, self.dim) for heads in (self.heads, self.kv_heads, self.kv_heads)])
        return [*operands, jnp.asarray(start)]

    def call(self, *operands: jax.Array) -> jax.Array:
        """The operation."""
        bias = jnp.zeros((self.heads, 2 * self.bias + 1), jnp.float32) if self.bias else None
        return ragged_attention(
            *operands, scale=self.dim**-0.5, causal=self.causal, window=self.window, position_bias=bias
        )


DECODES = (
    Paged("decode B64 ctx1024", 40, ((1, 1024),) * 64, True),
    Paged("decode B64 ctx4096", 20, ((1, 4096),) * 64, True),
    Paged("decode B8 ctx32768", 20, ((1, 32768),) * 8, True),
    Paged("decode B1 ctx32768", 40, ((1, 32768),), True),
    Paged("decode B256 ctx1024", 20, ((1, 1024),) * 256, True),
    Paged("decode B1 ctx512", 100, ((1, 512),), True),
    Paged("decode B64 ctx500, one of 32768", 40, ((1, 500),) * 63 + ((1, 32768),), True),
    Paged("decode B64 ctx100 to 300", 100, tuple((1, 100 + 37 * i % 201) for i in range(64)), True),
    Paged("decode B256 ctx1024 to 1280", 20, tuple((1, 1024 + 37 * i % 257) for i in range(256)), True),
    Paged("decode B32 ctx400", 100, ((1, 400),) * 32, True),
    Paged("decode B64 ctx300, 16/8 heads", 100, ((1, 300),) * 64, True, 16),
    Paged("decode B64 ctx300, 32/4 heads", 100, ((1, 300),) * 64, True, 32, 4),
    Paged("decode B256 ctx1150, 32/4 heads", 20, ((1, 1150),) * 256, True, 32, 4),
)
EXTENDS = (
    Paged("extend 1x8192", 5, ((8192, 8192),)),
    Paged("extend 4x2048", 5, ((2048, 2048),) * 4),
    Paged("extend 1x8192 at 24576", 3, ((8192, 32768),)),
    Paged("extend 255 decodes + 7937", 5, ((1, 1024),) * 255 + ((7937, 7937),)),
    Paged("extend 256 decodes", 10, ((1, 1024),) * 256),
    Paged("extend 8x1024", 10, ((1024, 1024),) * 8),
    Paged("extend 2x4096", 5, ((4096, 4096),) * 2),
    Paged("extend 2x4096, 16/8 heads", 10, ((4096, 4096),) * 2, False, 16),
    Paged("extend 8x1024, 16/8 heads", 20, ((1024, 1024),) * 8, False, 16),
    Paged("extend 2x4096, 32/4 heads", 5, ((4096, 4096),) * 2, False, 32, 4),
)
_SENTENCES = tuple(20 + 23 * i % 41 for i in range(410))  # of 20 to 60 tokens, 16,400 in all
RAGGED = (
    Ragged("ragged 410 sentences, 16 heads of 64", 20, _SENTENCES),
    Ragged("ragged 64x512, 16 heads of 64", 10, (512,) * 64),
    Ragged("ragged 8x8192, 16 heads of 64", 3, (8192,) * 8),
    Ragged("ragged 8x8192, 32/8 heads of 128, causal", 3, (8192,) * 8, 32, 8, 128, causal=True),
    Ragged("ragged 8x8192, 12 heads of 64, window 64", 10, (8192,) * 8, 12, 12, window=65),
    Ragged("ragged 8x2048, 32 heads of 80", 5, (2048,) * 8, 32, 32, 80),
    Ragged("ragged 64x512, 16 heads of 64, bias 128", 10, (512,) * 64, bias=128),
)
