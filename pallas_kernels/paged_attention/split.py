# mypy: disallow-untyped-defs=False
"""What attention kernels over split keys share: finding pages, and combining the parts of a softmax."""

from typing import Any

import jax
import jax_triton
import triton
import triton.language as tl

from pallas_kernels.paged_attention.softmax import per_head, start_softmax


def combine(partial: jax.Array, log_sum: jax.Array, first: jax.Array, sinks: jax.Array | None, dtype: Any) -> jax.Array:
    """Each row's result from those of its items, [R, H, D] in dtype; zeros for a row without items.

    partial: [items, H, D] and log_sum: [items, H] float32, each item's result and the log2 of its total of weights;
    first: [R + 1], the first item of each row; sinks: [H], one more logit in the denominator.
    """
    _, heads, dim = partial.shape
    rows, padded = first.shape[0] - 1, triton.next_power_of_2(dim)
    out: jax.Array = jax_triton.triton_call(
        partial,
        log_sum,
        first,
        first if sinks is None else sinks,
        kernel=_combine_kernel,
        out_type=jax.ShapeDtypeStruct((rows, heads, dim), dtype),
        grid=(heads, rows),
        name="paged_decode_combine",
        num_warps=4,
        num_stages=2,
        SINKS=sinks is not None,
        HEADS=heads,
        DIM=dim,
        DIM_PAD=padded,
        BLOCK=max(1, min(32, 4096 // padded)),
    )
    return out


@triton.jit
def block_pages(table_ptr, start, end, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """The page of the block at start, or of each of its tokens when it spans several; 0 from end on."""
    if PAGE % BLOCK == 0:
        page = tl.load(table_ptr + start // PAGE, mask=start < end, other=0)
    else:
        seen = start + tl.arange(0, BLOCK)
        page = tl.load(table_ptr + seen // PAGE, mask=seen < end, other=0)
    return page.to(tl.int64)


@triton.jit
def _combine_kernel(
    partial_ptr,
    log_sum_ptr,
    first_ptr,
    sinks_ptr,
    out_ptr,
    SINKS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The items of one row and query head, weighted by their sums, beside the sink; zeros for a row without items."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    first = tl.load(first_ptr + row)
    end = tl.load(first_ptr + row + 1)
    dims = tl.arange(0, DIM_PAD)
    top, total = start_softmax(per_head(sinks_ptr, head, True, SINKS), SINKS)
    out = tl.zeros([DIM_PAD], tl.float32)
    for start in range(first, end, BLOCK):
        items = start + tl.arange(0, BLOCK)
        places = items * HEADS + head
        log_sum = tl.load(log_sum_ptr + places, mask=items < end, other=float("-inf"))
        mask = (items < end)[:, None] & (dims < DIM)[None, :]
        partial = tl.load(partial_ptr + places[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
        higher = tl.maximum(top, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - higher)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 0)
        out = out * shrink + tl.sum(partial * weights[:, None], 0)
        top = higher
    out = out / tl.where(total > 0.0, total, 1.0)
    tl.store(out_ptr + (row * HEADS + head) * DIM + dims, out.to(out_ptr.dtype.element_ty), mask=dims < DIM)
