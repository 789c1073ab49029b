# mypy: disallow-untyped-defs=False
"""ragged_attention in Triton: FlashAttention-2 over tiles of one row's queries, dealt out as paged_attention's are.

A row's tile packs the query heads of a KV head, which reads its keys and values once for them, and visits the blocks
that one of its queries sees. The tiles of one place run next to each other for all heads, whose data is contiguous.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.paged_attention.schedule import share_tiles
from pallas_kernels.paged_attention.softmax import add_bias, add_keys, scale_scores, start_softmax

_MAX_HEAD_DIM = 256
_LOG2_E = 1.4426950408889634


def ragged_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_start: jax.Array,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    position_bias: jax.Array | None,
) -> jax.Array:
    """See pallas_kernels.ragged_attention."""
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    if dim > _MAX_HEAD_DIM:
        raise NotImplementedError(f"head_dim {dim} is over {_MAX_HEAD_DIM}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: must be one float type")
    dim_pad = max(16, triton.next_power_of_2(dim))
    wide = q.dtype.itemsize * dim_pad
    # queries: 64 fill the tensor cores and leave a sentence's tile little empty; several programs overlap.
    if q.dtype.itemsize == 2:
        defaults = {"queries": 64, "block": 64 if wide <= 256 else 32, "warps": 4, "stages": 3}
        if wide > 256:
            defaults |= {"block": 32, "warps": 8, "stages": 2}
        elif wide > 128 and position_bias is not None:
            defaults |= {"warps": 8}  # its addresses take registers
    else:
        defaults = {"queries": 64, "block": 32 if wide <= 512 else 16, "warps": 4, "stages": 2}
    config = tuning.config("ragged_attention", "ragged", defaults, head_dim=dim, bytes=q.dtype.itemsize)
    size = config["queries"] // group  # tokens a tile holds
    if not size:
        raise NotImplementedError(f"{group} query heads per KV head are over {config['queries']}")
    tiles = share_tiles(query_start, tokens, size)
    # The row of padding has no keys: its tiles write zeros.
    length = jnp.where(tiles.row < query_start.shape[0] - 1, tiles.end - tiles.begin, 0)
    work = jnp.stack([tiles.first, tiles.held, tiles.begin, length], axis=1)
    out: jax.Array = jax_triton.triton_call(
        q,
        k,
        v,
        query_start if position_bias is None else position_bias,  # always an operand: what is not given is not read
        work,
        kernel=_kernel,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(kv_heads, work.shape[0]),
        name="ragged_attention",
        num_warps=config["warps"],
        num_stages=config["stages"],
        SCALE=scale * _LOG2_E,
        SOFT_CAP=soft_cap or 0.0,
        CAUSAL=causal,
        WINDOW=window or 0,
        BIAS=0 if position_bias is None else position_bias.shape[1],
        KV_HEADS=kv_heads,
        GROUP=group,
        DIM=dim,
        DIM_PAD=dim_pad,
        QUERIES=config["queries"],
        BLOCK=config["block"],
        PRECISION="tf32x3",  # of float32 operands, on tensor cores, with an error near float32's own
    )
    return out


@triton.jit
def _kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    work_ptr,
    out_ptr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BIAS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile, tokens of one row with the query heads of one KV head, QUERIES at most. Positions are a row's own."""
    # A row's later tiles have more to read if causal: they start first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    head = tl.program_id(0)
    first = tl.load(work_ptr + tile * 4)
    tokens = tl.load(work_ptr + tile * 4 + 1)
    row = tl.load(work_ptr + tile * 4 + 2)
    length = tl.load(work_ptr + tile * 4 + 3)
    if tokens == 0:
        return
    query = tl.arange(0, QUERIES)
    token = query // GROUP
    dims = tl.arange(0, DIM_PAD)
    mask = (token < tokens)[:, None] & (dims < DIM)[None, :]
    heads = head * GROUP + query % GROUP
    offsets = ((first + token) * (KV_HEADS * GROUP) + heads).to(tl.int64)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + offsets, mask=mask, other=0.0)

    # Of the tile's queries one sees positions begin to end, every one those from full to full_end.
    position = first - row
    positions = position + token
    begin = 0
    full = 0
    end = length
    full_end = length
    if CAUSAL:
        end = tl.minimum(end, position + tokens)
        full_end = position + 1
    if WINDOW > 0:
        begin = tl.maximum(position - WINDOW + 1, 0)
        full = position + tokens - WINDOW
        end = tl.minimum(end, position + tokens + WINDOW - 1)
        full_end = tl.minimum(full_end, position + WINDOW)

    block = tl.arange(0, BLOCK)
    keys = (row + begin).to(tl.int64) * (KV_HEADS * DIM) + head * DIM
    key_offsets = block[:, None] * (KV_HEADS * DIM) + dims[None, :]
    k_ptr += keys
    v_ptr += keys
    table = bias_ptr + heads * BIAS
    LATE_SCALE: tl.constexpr = 1.0 if (SOFT_CAP > 0.0 or BIAS) else SCALE
    top, total = start_softmax(tl.zeros([QUERIES], tl.float32), False)
    state = (top, total, tl.zeros([QUERIES, DIM_PAD], tl.float32))
    for start in range(begin, end, BLOCK):
        seen = start + block
        readable = (seen < end)[:, None] & (dims < DIM)[None, :]
        k = tl.load(k_ptr + key_offsets, mask=readable, other=0.0)
        v = tl.load(v_ptr + key_offsets, mask=readable, other=0.0)
        k_ptr += BLOCK * KV_HEADS * DIM
        v_ptr += BLOCK * KV_HEADS * DIM
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if SOFT_CAP > 0.0 or BIAS:
            scores = scale_scores(scores, SCALE, SOFT_CAP)
        if BIAS:
            reach = BIAS // 2 + start - position
            offset = BIAS // 2 + seen[None, :] - positions[:, None]
            scores = add_bias(scores, table, offset, reach - tokens + 1, reach + BLOCK - 1, BIAS)
        if (start < full) | (start + BLOCK > full_end):
            visible = (seen < end)[None, :]
            if CAUSAL:
                visible = visible & (seen[None, :] <= positions[:, None])
            if WINDOW > 0:
                distance = seen[None, :] - positions[:, None]
                visible = visible & (distance > -WINDOW) & (distance < WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        state = add_keys(state, scores, v, LATE_SCALE, PRECISION)
    _, total, out = state
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
