"""Cases of decode_attention: those of a decode's attention, whose newest tokens come as a projection makes them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pallas_kernels.case import normal
from pallas_kernels.kv_write.shapes import WriteCase
from pallas_kernels.paged_attention.shapes import CASES as ATTENTION_CASES
from pallas_kernels.paged_attention.shapes import AttentionCase
from pallas_kernels.qk_norm_rope_kv_write.shapes import NormRopeWriteCase
from pallas_kernels.rope.shapes import rotations


@dataclass(frozen=True)
class DecodeAttentionCase:
    """A decode whose heads turn by `turned` numbers (None: all)."""

    attention: AttentionCase
    norm: bool = False
    turned: int | None = None
    interleaved: bool = False
    eps: float = 1e-5

    @property
    def name(self) -> str:
        """That of the decode."""
        return self.attention.name

    @property
    def large(self) -> bool:
        """As the decode is."""
        return self.attention.large

    def arguments(self, rng: np.random.Generator, dtype: Any) -> tuple[list[np.ndarray | None], dict[str, Any]]:
        """The decode's operands with NaN where the newest keys and values go, and what comes before it."""
        case = self.attention
        (q, k_pages, v_pages, table, _, kv_len), options = case.arguments(rng, dtype)
        newest = np.maximum(kv_len - 1, 0)
        page = np.where(kv_len > 0, table[np.arange(len(kv_len)), newest // case.page], 0)
        index = (page * case.page + newest % case.page * (kv_len > 0)).astype(np.int32)
        for pool in (k_pages, v_pages):
            pool.reshape(-1, case.kv_heads, case.dim)[index] = np.nan
        k, v = (normal(rng, len(index), case.kv_heads, case.dim).astype(dtype) for _ in range(2))
        turned = case.dim if self.turned is None else self.turned
        angles: list[np.ndarray | None] = list(rotations(rng, len(index), turned)) if turned else [None, None]
        for name in ("causal", "decode"):
            del options[name]
        options |= {"eps": self.eps, "interleaved": self.interleaved}
        if self.norm:
            options |= {name: rng.normal(size=case.dim).astype(dtype) for name in ("q_weight", "k_weight")}
        qkv = np.concatenate([q, k, v], axis=1)
        return [qkv, *angles, k_pages, v_pages, index, table, kv_len], options

    def expected(self, operands: Sequence[Any], options: dict[str, Any]) -> list[np.ndarray]:
        """Norm, rotation and write, then attention to what they left, rounded once as it lies there."""
        *placed, table, kv_len = operands
        qkv, index = placed[0], placed[-1]
        case = self.attention
        write = WriteCase(self.name, len(index), page=case.page, kv_heads=case.kv_heads, dim=case.dim)
        before = NormRopeWriteCase(case.heads, write, self.norm, self.turned, self.interleaved, self.eps)
        q, *pools = (x.astype(qkv.dtype) for x in before.expected(placed, options))
        [out] = case.expected([q, *pools, table, np.arange(len(kv_len) + 1), kv_len], options)
        for pool in pools:
            pool[0] = np.nan  # what padding writes there, if anything, nobody reads
        return [out, *(pool.astype(np.float64) for pool in pools)]


_ATTENTION = {case.name: case for case in ATTENTION_CASES}


def _case(name: str, attention: str, page: int | None = None, **facts: Any) -> DecodeAttentionCase:
    base = replace(_ATTENTION[attention], name=name)
    return DecodeAttentionCase(base if page is None else replace(base, page=page), **facts)


CASES = (
    *(
        DecodeAttentionCase(case, norm=number % 2 == 1)
        for number, case in enumerate(ATTENTION_CASES)
        if case.decode and case.causal
    ),
    # Items whose only position is the newest, of rows of two and three.
    DecodeAttentionCase(AttentionCase("newest-alone", ((1, 129), (1, 257), (1, 1), (1, 128)), decode=True, sinks=True)),
    _case("page-8", "decode-splits", page=8, norm=True),
    _case("page-256", "decode-splits", page=256),
    _case("norm-partial", "decode-splits", norm=True, turned=24),
    _case("norm-alone", "decode-page-32-dim-80", norm=True, turned=0),
    _case("write-alone", "decode-page-borders", turned=0),
    _case("partial", "decode-page-32-dim-80", turned=32, eps=1e-2),
    _case("interleaved", "decode-splits", interleaved=True),
    _case("interleaved-partial-norm", "decode-page-32-dim-80", norm=True, turned=20, interleaved=True),
)
