# mypy: disallow-untyped-defs=False
"""Asking the second-level cache for what is about to be read, without waiting for it.

Between a decode step's matmuls the memory idles while small kernels start, wait and end. What such a kernel has
fetched meanwhile of the next matmul's weights (`soon`), that one should not have to wait for. Results do not depend on
it. Nothing is fetched unless a tuning table says how much; none does before it is measured.
"""

from typing import Any

import jax
import triton
import triton.language as tl

from pallas_kernels import tuning

MOST_ROWS = 256
"""Of a step whose small kernels fetch: with more rows the memory has enough to do."""
FEW_ROWS = 16
"""Up to so many an attention leaves the memory idle for most of its time."""


def fetching(operation: str, rows: int, soon: jax.Array | None, instead: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """What an operation's kernel of its own name fetches, as measured for `few` rows, 1, or more, 0: the operand, and
    FETCHERS, programs that do nothing else, and FETCH, bytes that they fetch between them.

    The table has `fetchers` and `fetch`, in KiB. soon: what is read next, None where that is not known. instead: the
    operand where nothing is fetched.
    """
    config = tuning.config(operation, operation, {"fetchers": 0, "fetch": 0}, few=int(rows <= FEW_ROWS))
    size = 0
    if soon is not None and rows <= MOST_ROWS and config["fetchers"]:
        size = min(config["fetch"] * 1024, soon.size * soon.dtype.itemsize // 128 * 128)
    if soon is None or not size:
        return instead, {"FETCHERS": 0, "FETCH": 0}
    return soon, {"FETCHERS": config["fetchers"], "FETCH": size}


@triton.jit
def fetch_share(ptr, part, PARTS: tl.constexpr, BYTES: tl.constexpr, THREADS: tl.constexpr):
    """Fetches one of PARTS parts of the BYTES at ptr, each of a program's THREADS a piece of it."""
    PIECE: tl.constexpr = (BYTES + PARTS * THREADS * 128 - 1) // (PARTS * THREADS * 128) * 128
    place = (part * THREADS + tl.arange(0, THREADS)) * PIECE
    inside = place < BYTES
    place = tl.maximum(tl.minimum(place, BYTES - PIECE), 0)  # the last piece may overlap the one before
    fetch(ptr + place // (ptr.dtype.element_ty.primitive_bitwidth // 8), inside, PIECE)


@triton.jit
def fetch(pointers, mask, BYTES: tl.constexpr):
    """Fetches BYTES, a multiple of 16, from each of pointers on, which are multiples of 16 too, where mask is true. Of
    compute capability 9.0 and later; another instruction says nothing about how much it fetches."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r,r",
        [pointers.to(tl.int64), tl.full(pointers.shape, BYTES, tl.int32), mask.to(tl.int32)],
        tl.int32,
        is_pure=False,
        pack=1,
    )
