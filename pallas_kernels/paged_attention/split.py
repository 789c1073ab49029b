# mypy: disallow-untyped-defs=False
"""What attention kernels over split keys share: finding pages, and combining the parts of a softmax."""

import triton
import triton.language as tl

from pallas_kernels.paged_attention.softmax import start_softmax


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
def finish(
    state,
    row,
    head,
    item,
    first,
    items,
    arrived_ptr,
    out_ptr,
    partial_ptr,
    log_sum_ptr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Ends one item of a row and KV head, and with the last of the row's `items` items, from `first` on, the row.

    state: (top [GROUP_PAD], total [GROUP_PAD], out [GROUP_PAD, DIM_PAD]) of the item; the results [R, H, D] go to
    out_ptr. A row's only item needs no more. Of several, each leaves its result and the log2 of its total of weights at
    partial_ptr [items, H, D] and log_sum_ptr [items, H], float32, and whichever arrives last combines them, TOGETHER at
    a time, in their order: results do not depend on the order of arrival.
    arrived_ptr [R, KV_HEADS] int32 counts them: zeros, and zeros again afterwards.
    """
    top, total, out = state
    HEADS: tl.constexpr = KV_HEADS * GROUP
    group = tl.arange(0, GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    mask = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    offsets = (head * GROUP + group)[:, None] * DIM + dims[None, :]
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    if items == 1:
        tl.store(out_ptr + row * (HEADS * DIM) + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(partial_ptr + item * (HEADS * DIM) + offsets, out, mask=mask)
        tl.store(log_sum_ptr + item * HEADS + head * GROUP + group, top + tl.log2(total), mask=group < GROUP)
        arrived_ptr += row * KV_HEADS + head
        # What the other threads stored goes before what this one releases.
        tl.debug_barrier()
        if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == items - 1:
            tl.store(arrived_ptr, 0)
            combine(
                partial_ptr, log_sum_ptr, out_ptr, row, first, first + items, head * GROUP,
                HEADS, GROUP, DIM, DIM_PAD, TOGETHER,
            )  # fmt: skip


@triton.jit
def combine(
    partial_ptr,
    log_sum_ptr,
    out_ptr,
    row,
    first,
    end,
    head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """A row's result for GROUP query heads from `head` on: those of its items first:end, weighted by their sums.

    partial_ptr: [items, HEADS, DIM] and log_sum_ptr: [items, HEADS] float32, as in finish; out_ptr: [R, HEADS, DIM].
    """
    GROUP_PAD: tl.constexpr = triton.next_power_of_2(GROUP)  # tensor cores take no part: no 16 heads at least
    group = tl.arange(0, GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    top, total = start_softmax(tl.zeros([GROUP_PAD], tl.float32), False)
    out = tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)
    for start in range(first, end, TOGETHER):
        items = start + tl.arange(0, TOGETHER)
        places = items[:, None] * HEADS + (head + group)[None, :]
        mask = (items < end)[:, None] & (group < GROUP)[None, :]
        # Past the first-level cache, which knows nothing of other programs' results.
        log_sum = tl.load(log_sum_ptr + places, mask=mask, other=float("-inf"), cache_modifier=".cg")
        partial = tl.load(
            partial_ptr + places[:, :, None] * DIM + dims[None, None, :],
            mask=mask[:, :, None] & (dims < DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        higher = tl.maximum(top, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - higher[None, :])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 0)
        out = out * shrink[:, None] + tl.sum(partial * weights[:, :, None], 0)
        top = higher
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    offsets = (row * HEADS + head + group)[:, None] * DIM + dims[None, :]
    mask = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
