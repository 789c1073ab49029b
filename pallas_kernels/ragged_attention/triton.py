# mypy: disallow-untyped-defs=False
"""ragged_attention in Triton: FlashAttention-2 over tiles of one row's queries, dealt out as paged_attention's are.

A row's tile packs the query heads of a KV head, which reads its keys and values once for them, and visits the blocks
that one of its queries sees. The tiles of one place run next to each other for all heads, whose data is contiguous.
A head dim that is no power of two is taken in two parts, 80 as 64 and 16: padded to 128 it would waste tensor cores.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.paged_attention.schedule import share_tiles
from pallas_kernels.paged_attention.softmax import add_bias, scale_scores, start_softmax, weigh

_MAX_HEAD_DIM = 256
_MAX_TILES = 65535  # a grid's second axis has no more
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
    part, rest = _parts(dim)
    wide = q.dtype.itemsize * (part + rest)
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
    if work.shape[0] > _MAX_TILES:
        raise NotImplementedError(f"{work.shape[0]} tiles are over {_MAX_TILES}")
    out: jax.Array = jax_triton.triton_call(
        q,
        k,
        v,
        query_start if position_bias is None else position_bias,  # always an operand: what is not given is not read
        work,
        kernel=_ragged_attention_kernel,
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
        PART=part,
        REST=rest,
        QUERIES=config["queries"],
        BLOCK=config["block"],
        PRECISION="tf32x3",  # of float32 operands, on tensor cores, with an error near float32's own
    )
    return out


def _parts(dim: int) -> tuple[int, int]:
    """The sizes, powers of two, of the parts that a head is taken in; 0 for no second part."""
    whole = max(16, triton.next_power_of_2(dim))
    rest = max(16, triton.next_power_of_2(dim - whole // 2))
    return (whole // 2, rest) if whole > 16 and whole // 2 + rest < whole else (whole, 0)


@triton.jit
def _ragged_attention_kernel(
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
    PART: tl.constexpr,
    REST: tl.constexpr,
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
    dims = tl.arange(0, PART)
    held = (token < tokens)[:, None]
    heads = head * GROUP + query % GROUP
    places = ((first + token) * (KV_HEADS * GROUP) + heads).to(tl.int64)[:, None] * DIM
    q = tl.load(q_ptr + places + dims[None, :], mask=held & (dims < DIM)[None, :], other=0.0)
    if REST > 0:
        others = PART + tl.arange(0, REST)
        q_rest = tl.load(q_ptr + places + others[None, :], mask=held & (others < DIM)[None, :], other=0.0)

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
    key_places = block[:, None] * (KV_HEADS * DIM)
    k_ptr += keys
    v_ptr += keys
    table = bias_ptr + heads * BIAS
    LATE_SCALE: tl.constexpr = 1.0 if (SOFT_CAP > 0.0 or BIAS) else SCALE
    top, total = start_softmax(tl.zeros([QUERIES], tl.float32), False)
    out = tl.zeros([QUERIES, PART], tl.float32)
    if REST > 0:
        out_rest = tl.zeros([QUERIES, REST], tl.float32)
    for start in range(begin, end, BLOCK):
        seen = start + block
        readable = (seen < end)[:, None]
        offsets = key_places + dims[None, :]
        k = tl.load(k_ptr + offsets, mask=readable & (dims < DIM)[None, :], other=0.0)
        v = tl.load(v_ptr + offsets, mask=readable & (dims < DIM)[None, :], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if REST > 0:
            offsets_rest = key_places + others[None, :]
            k_rest = tl.load(k_ptr + offsets_rest, mask=readable & (others < DIM)[None, :], other=0.0)
            v_rest = tl.load(v_ptr + offsets_rest, mask=readable & (others < DIM)[None, :], other=0.0)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision=PRECISION)
        k_ptr += BLOCK * KV_HEADS * DIM
        v_ptr += BLOCK * KV_HEADS * DIM
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
        top, total, weights, shrink = weigh(top, total, scores, LATE_SCALE)
        weights = weights.to(v.dtype)
        out = tl.dot(weights, v, out * shrink[:, None], input_precision=PRECISION)
        if REST > 0:
            out_rest = tl.dot(weights, v_rest, out_rest * shrink[:, None], input_precision=PRECISION)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)[:, None]
    out_places = out_ptr + places
    tl.store(out_places + dims[None, :], (out * share).to(q.dtype), mask=held & (dims < DIM)[None, :])
    if REST > 0:
        tl.store(out_places + others[None, :], (out_rest * share).to(q.dtype), mask=held & (others < DIM)[None, :])
