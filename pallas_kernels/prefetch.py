# mypy: disallow-untyped-defs=False
"""Asking the second-level cache for what is about to be read, without waiting for it.

Between a decode step's matmuls the memory idles while small kernels start, wait and end. What such a kernel has
fetched meanwhile of the next matmul's weights (`soon`), that one need not wait for. Results do not depend on it.
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


def fetching(operation: str, rows: int, soon: jax.Array | None) -> dict[str, Any]:
    """FETCHERS, programs that do nothing else, and FETCH, bytes that they fetch between them, of an operation's kernel
    of its own name; as measured for `few` rows, 1, or more, 0. soon: what is read next, if that is known."""
    defaults = {"fetchers": 0, "fetch": 0}  # fetch: KiB
    config = tuning.config(operation, operation, defaults, few=int(rows <= FEW_ROWS))
    if rows > MOST_ROWS:
        soon = None
    size = 0 if soon is None else min(config["fetch"] * 1024, soon.size * soon.dtype.itemsize // 128 * 128)
    return {"FETCHERS": config["fetchers"] if size else 0, "FETCH": size}


@triton.jit
def fetch_share(ptr, part, PARTS: tl.constexpr, BYTES: tl.constexpr):
    """Fetches one of PARTS parts of the BYTES at ptr."""
    WIDTH: tl.constexpr = 512
    LINE: tl.constexpr = 1024 // ptr.dtype.element_ty.primitive_bitwidth  # numbers in 128 bytes
    SHARE: tl.constexpr = (BYTES // 128 + PARTS - 1) // PARTS
    for start in tl.range(0, SHARE, WIDTH):
        line = tl.minimum(start + tl.arange(0, WIDTH), SHARE - 1)
        fetch(ptr + tl.minimum(part * SHARE + line, BYTES // 128 - 1) * LINE)


@triton.jit
def fetch(pointers):
    """Fetches the 128 bytes around each pointer."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )
