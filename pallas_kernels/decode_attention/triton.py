# mypy: disallow-untyped-defs=False
"""decode_attention in Triton: paged_attention's split-KV decode, whose programs place their own queries.

Turning a group of queries again in every item of a row costs less than a kernel of its own for it, a launch a layer.
The newest key and value never come from the pools: the item that has a row's end places the key, writes both, and takes
them into its softmax from its registers.
"""

import jax
import jax_triton
import triton
import triton.language as tl

from pallas_kernels.paged_attention.softmax import per_head, scale_scores, start_softmax, weigh
from pallas_kernels.paged_attention.split import block_pages, finish
from pallas_kernels.paged_attention.triton import attend_keys, decode_items, kernel_shape


def decode_attention(
    qkv: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    page_table: jax.Array,
    kv_len: jax.Array,
    *,
    q_weight: jax.Array | None,
    k_weight: jax.Array | None,
    eps: float,
    interleaved: bool,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    alibi_slopes: jax.Array | None,
    sinks: jax.Array | None,
    position_bias: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See pallas_kernels.decode_attention."""
    rows, heads, dim = qkv.shape
    q = jax.ShapeDtypeStruct((rows, heads - 2 * k_pages.shape[2], dim), qkv.dtype)
    shape = kernel_shape(
        q, k_pages, page_table, scale=scale, window=window, soft_cap=soft_cap, alibi_slopes=alibi_slopes, sinks=sinks,
        position_bias=position_bias,
    )  # fmt: skip
    items, options = decode_items(q, kv_len, shape)
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    out, _, _ = jax_triton.triton_call(
        qkv,
        # Always operands: what is not given is not read.
        *(qkv if x is None else x for x in (cos, sin, q_weight, k_weight)),
        index,
        k_ref,
        v_ref,
        page_table,
        *(kv_len if x is None else x for x in (alibi_slopes, sinks, position_bias)),
        *items,
        kernel=_decode_attention_kernel,
        name="decode_attention",
        HALF=0 if cos is None else cos.shape[1],
        Q_NORM=q_weight is not None,
        K_NORM=k_weight is not None,
        EPS=eps,
        INTERLEAVED=interleaved,
        **options,
    )
    return out, jax.freeze(k_ref), jax.freeze(v_ref)


@triton.jit
def _decode_attention_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
    index_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    slopes_ptr,
    sinks_ptr,
    bias_ptr,
    work_ptr,
    arrived_ptr,
    out_ptr,
    partial_ptr,
    log_sum_ptr,
    HALF: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    EPS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    BIAS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """One item of one KV head: a chunk of a row's positions; the item of a row that ends last ends the row."""
    head = tl.program_id(0)
    item = tl.program_id(1)
    row = tl.load(work_ptr + item * 6)
    begin = tl.load(work_ptr + item * 6 + 1)
    end = tl.load(work_ptr + item * 6 + 2)
    kv_len = tl.load(work_ptr + item * 6 + 3)
    first = tl.load(work_ptr + item * 6 + 4)
    items = tl.load(work_ptr + item * 6 + 5)
    if row < 0:
        return
    newest = kv_len - 1
    old_end = tl.minimum(end, newest)  # of what is in the pools
    oldest = 0
    if WINDOW > 0:
        oldest = tl.maximum(kv_len - WINDOW, 0)

    # All but keys and values is asked for before any of it is waited for.
    table_ptr += row * MAX_PAGES
    page = block_pages(table_ptr, begin, old_end, PAGE, BLOCK)
    group = tl.arange(0, GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    pairs, turned, negative, angle = _pairs(dims, HALF, INTERLEAVED)
    mask = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    heads = head * GROUP + group
    qkv_ptr += row * (KV_HEADS * (GROUP + 2) * DIM)
    k_at = qkv_ptr + (KV_HEADS * GROUP + head) * DIM
    q = tl.load(qkv_ptr + heads[:, None] * DIM + dims[None, :], mask=mask, other=0.0)
    k = tl.load(k_at + dims[None, :], mask=dims[None, :] < DIM, other=0.0)
    q_pairs, k_pairs = q, k
    cos, sin = dims, dims
    if HALF > 0:
        q_pairs = tl.load(qkv_ptr + heads[:, None] * DIM + pairs[None, :], mask=mask & turned[None, :], other=0.0)
        k_pairs = tl.load(k_at + pairs[None, :], mask=turned[None, :], other=0.0)
        cos = tl.load(cos_ptr + row * HALF + angle, mask=turned, other=1.0)
        sin = tl.load(sin_ptr + row * HALF + angle, mask=turned, other=0.0)
    q_weight, q_weight_pairs = _weights(q_weight_ptr, dims, pairs, turned, DIM, Q_NORM)
    k_weight, k_weight_pairs = _weights(k_weight_ptr, dims, pairs, turned, DIM, K_NORM)
    v = tl.load(k_at + KV_HEADS * DIM + dims[None, :], mask=dims[None, :] < DIM, other=0.0)
    slot = tl.load(index_ptr + row).to(tl.int64)
    slopes = per_head(slopes_ptr, heads, group < GROUP, ALIBI)
    sinks = per_head(sinks_ptr, heads, group < GROUP, SINKS)

    q = _place(q, q_pairs, q_weight, q_weight_pairs, cos, sin, negative, HALF, DIM, Q_NORM, EPS)
    position = tl.zeros([GROUP_PAD], tl.int32) + newest
    bias = bias_ptr + tl.minimum(heads, KV_HEADS * GROUP - 1) * BIAS
    # The sink is in the total of the row's first item, and weighs nothing in others'.
    top, total = start_softmax(tl.where(item == first, sinks, -1e30), SINKS)
    state = attend_keys(
        (top, total, tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)),
        q, position, slopes, bias, k_ptr, v_ptr, table_ptr, page, head, begin, old_end, oldest, oldest, newest,
        SCALE, SOFT_CAP, WINDOW, ALIBI, BIAS, KV_HEADS, DIM, DIM_PAD, PAGE, BLOCK, PRECISION,
    )  # fmt: skip
    top, total, out = state
    if (end == kv_len) & (kv_len > 0):
        k = _place(k, k_pairs, k_weight, k_weight_pairs, cos, sin, negative, HALF, DIM, K_NORM, EPS)
        place = (slot * KV_HEADS + head) * DIM + dims[None, :]
        tl.store(k_ptr + place, k, mask=dims[None, :] < DIM)
        tl.store(v_ptr + place, v, mask=dims[None, :] < DIM)
        scores = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[:, None]
        LATE_SCALE: tl.constexpr = 1.0 if (SOFT_CAP > 0.0 or ALIBI or BIAS) else SCALE
        if SOFT_CAP > 0.0 or ALIBI or BIAS:
            scores = scale_scores(scores, SCALE, SOFT_CAP)
        if BIAS:
            scores += (tl.load(bias) * 1.4426950408889634)[:, None]  # at distance 0, where ALiBi's slopes add nothing
        top, total, weights, shrink = weigh(top, total, scores, LATE_SCALE)
        out = out * shrink[:, None] + weights.to(v.dtype).to(tl.float32) * v.to(tl.float32)
    finish(
        (top, total, out), row, head, item, first, items, arrived_ptr, out_ptr, partial_ptr, log_sum_ptr,
        KV_HEADS, GROUP, GROUP_PAD, DIM, DIM_PAD, TOGETHER,
    )  # fmt: skip


@triton.jit
def _pairs(dims, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Of each number of a head: which one it turns with, whether it turns, whether it loses what comes of that one
    (else it gains), and which angle turns it."""
    if INTERLEAVED:
        pairs = dims ^ 1
        negative = dims % 2 == 0
        angle = dims // 2
    else:
        negative = dims < HALF
        angle = tl.where(negative, dims, dims - HALF)
        pairs = tl.where(negative, dims + HALF, angle)
    return pairs, dims < 2 * HALF, negative, angle


@triton.jit
def _weights(ptr, dims, pairs, turned, DIM: tl.constexpr, GIVEN: tl.constexpr):
    """A norm's weights [DIM_PAD], and those of the numbers that each turns with; something unused unless GIVEN."""
    if GIVEN:
        weight = tl.load(ptr + dims, mask=dims < DIM, other=0.0)
        of_pairs = tl.load(ptr + pairs, mask=turned, other=0.0)
    else:
        weight, of_pairs = dims, dims
    return weight, of_pairs


@triton.jit
def _place(
    x,
    pairs,
    weight,
    weight_of_pairs,
    cos,
    sin,
    negative,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
):
    """Heads x [M, DIM_PAD] normed and turned, in x's type; pairs: the numbers that x's turn with, as they came.

    Rounded where qk_norm_rope_kv_write rounds.
    """
    kept = x.dtype
    one = x.to(tl.float32)
    two = pairs.to(tl.float32)
    if NORM:
        inverse = tl.rsqrt(tl.sum(one * one, 1) / DIM + EPS)[:, None]
        one = (one * inverse * weight.to(tl.float32)[None, :]).to(kept).to(tl.float32)
        two = (two * inverse * weight_of_pairs.to(tl.float32)[None, :]).to(kept).to(tl.float32)
    if HALF > 0:
        signed = tl.where(negative, -sin.to(tl.float32), sin.to(tl.float32))
        one = one * cos.to(tl.float32)[None, :] + two * signed[None, :]
    return one.to(kept)
