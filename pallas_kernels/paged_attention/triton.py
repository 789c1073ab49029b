# mypy: disallow-untyped-defs=False
"""paged_attention in Triton: split-KV decode (FlashDecoding) and ragged extend (FlashAttention-2), both packing the
query heads of a KV head into one program so that its keys and values are read once.

No lengths are known on the host. Decode cuts the rows into items of one device-computed number of tokens, so that a
batch of any mixture of lengths fills the GPU evenly, and whichever item of a row ends last combines them all; extend
cuts them into tiles of queries, and a tile that holds a single token takes a narrow path whose cost is that of reading
its keys and values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.paged_attention.schedule import counters, share_keys, share_tiles
from pallas_kernels.paged_attention.softmax import add_bias, add_keys, per_head, scale_scores, start_softmax
from pallas_kernels.paged_attention.split import block_pages, finish

_MAX_HEAD_DIM = 256
_LOG2_E = 1.4426950408889634


def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    alibi_slopes: jax.Array | None,
    sinks: jax.Array | None,
    position_bias: jax.Array | None,
    decode: bool,
) -> jax.Array:
    """See pallas_kernels.paged_attention."""
    shape = kernel_shape(
        q, k_pages, page_table, scale=scale, window=window, soft_cap=soft_cap, alibi_slopes=alibi_slopes, sinks=sinks,
        position_bias=position_bias,
    )  # fmt: skip
    # Always operands: what is not given is not read.
    slopes, sinks, bias = (kv_len if x is None else x for x in (alibi_slopes, sinks, position_bias))
    if decode:
        operands, options = decode_items(q, kv_len, shape)
        out, _, _ = jax_triton.triton_call(
            q, k_pages, v_pages, page_table, slopes, sinks, bias, *operands,
            kernel=_decode_kernel, name="paged_decode", **options,
        )  # fmt: skip
        return out
    return _extend(q, k_pages, v_pages, page_table, query_start, kv_len, slopes, sinks, bias, causal, shape)


def kernel_shape(
    q: jax.Array | jax.ShapeDtypeStruct,
    k_pages: jax.Array,
    page_table: jax.Array,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    alibi_slopes: jax.Array | None,
    sinks: jax.Array | None,
    position_bias: jax.Array | None,
) -> dict[str, Any]:
    """What every attention kernel here is compiled for; NotImplementedError where none is made for it."""
    _, heads, dim = q.shape
    page, kv_heads = k_pages.shape[1:3]
    if dim > _MAX_HEAD_DIM:
        raise NotImplementedError(f"head_dim {dim} is over {_MAX_HEAD_DIM}")
    if q.dtype != k_pages.dtype or q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"queries are {q.dtype} and pools {k_pages.dtype}: both must be one float type")
    if page & (page - 1) or page < 8:
        raise NotImplementedError(f"page size {page} is not a power of two of at least 8")
    return {
        "SCALE": scale * _LOG2_E,
        "SOFT_CAP": soft_cap or 0.0,
        "WINDOW": window or 0,
        "ALIBI": alibi_slopes is not None,
        "SINKS": sinks is not None,
        "BIAS": 0 if position_bias is None else position_bias.shape[1],
        "KV_HEADS": kv_heads,
        "GROUP": heads // kv_heads,
        "DIM": dim,
        "DIM_PAD": max(16, triton.next_power_of_2(dim)),
        "PAGE": page,
        "MAX_PAGES": page_table.shape[1],
        "PRECISION": "tf32x3",  # of float32 operands, on tensor cores, with an error near float32's own
    }


def decode_items(
    q: jax.Array | jax.ShapeDtypeStruct, kv_len: jax.Array, shape: dict[str, Any]
) -> tuple[tuple[jax.Array, jax.Array], dict[str, Any]]:
    """What decode kernels share: their last operands, the items and the counters of those that are done, and options.

    q: [R, H, D]; shape: kernel_shape's. Their results are out [R, H, D] and the items' parts, as finish has them.
    """
    _, heads, dim = q.shape
    kv_heads, capacity = shape["KV_HEADS"], shape["MAX_PAGES"] * shape["PAGE"]
    width = q.dtype.itemsize * shape["DIM_PAD"]
    config = tuning.config(
        "paged_attention",
        "decode",
        # programs: how many share the work of an evenly filled GPU (132 x 4: all of an H100's at once);
        # least: the fewest tokens worth an item.
        {
            "block": 64 if width <= 128 else 32,
            "warps": 4,
            "stages": 4 if width <= 256 else 3,
            "programs": 528,
            "least": 128,
        },
        head_dim=dim,
        bytes=q.dtype.itemsize,
        page=shape["PAGE"],
    )
    block = config["block"]
    begin = jnp.zeros_like(kv_len)
    if shape["WINDOW"]:
        begin = jnp.maximum(kv_len - shape["WINDOW"], 0) // block * block
    aim = max(1, config["programs"] // kv_heads)
    work, _ = share_keys(begin, kv_len, block=block, aim=aim, least=config["least"], capacity=capacity)
    parts = jax.ShapeDtypeStruct((work.shape[0], heads, dim), jnp.float32)
    options = {
        "out_type": (
            jax.ShapeDtypeStruct(q.shape, q.dtype), parts, jax.ShapeDtypeStruct(parts.shape[:2], jnp.float32),
        ),
        "grid": (kv_heads, work.shape[0]),
        "num_warps": config["warps"],
        "num_stages": config["stages"],
        "BLOCK": block,
        "GROUP_PAD": max(16, triton.next_power_of_2(shape["GROUP"])),
        # As many parts at once as a program of four warps holds beside what it keeps anyway.
        "TOGETHER": max(1, 4096 // (triton.next_power_of_2(shape["GROUP"]) * shape["DIM_PAD"])),
        **shape,
    }  # fmt: skip
    return (work, counters(kv_len, kv_heads)), options


def _extend(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    slopes: jax.Array,
    sinks: jax.Array,
    bias: jax.Array,
    causal: bool,
    shape: dict[str, Any],
) -> jax.Array:
    tokens, _, dim = q.shape
    rows, group = page_table.shape[0], shape["GROUP"]
    wide = q.dtype.itemsize * shape["DIM_PAD"]
    # registers: at most so many a thread, for more programs on a multiprocessor at once; 0 leaves it to the compiler.
    if q.dtype.itemsize == 2:
        defaults = {"queries": 128, "block": 64 if wide <= 256 else 32, "warps": 8, "stages": 3, "registers": 0}
    else:
        defaults = {"queries": 64, "block": 32 if wide <= 512 else 16, "warps": 4, "stages": 2, "registers": 0}
    config = tuning.config(
        "paged_attention", "extend", defaults, head_dim=dim, bytes=q.dtype.itemsize, page=shape["PAGE"]
    )
    size = config["queries"] // group  # tokens a tile holds
    if not size:
        raise NotImplementedError(f"{group} query heads per KV head are over {config['queries']}")
    tiles = share_tiles(query_start, tokens, size)
    # The first token's position, or the last one that all see; negative in the row of padding, which sees nothing.
    kv_len = jnp.pad(kv_len, (0, 1))[tiles.row]
    position = kv_len - tiles.end + tiles.first if causal else kv_len - 1
    work = jnp.stack([jnp.clip(tiles.row, 0, rows - 1), tiles.first, tiles.held, position], axis=1)
    out: jax.Array = jax_triton.triton_call(
        q,
        k_pages,
        v_pages,
        page_table,
        slopes,
        sinks,
        bias,
        work,
        kernel=_extend_kernel,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(work.shape[0], shape["KV_HEADS"]),
        name="paged_extend",
        num_warps=config["warps"],
        num_stages=config["stages"],
        backend_options={"maxnreg": config["registers"]} if config["registers"] else None,
        QUERIES=config["queries"],
        BLOCK=config["block"],
        CAUSAL=causal,
        **shape,
    )
    return out


@triton.jit
def attend_keys(
    state,
    q,
    position,
    slopes,
    bias,
    k_ptr,
    v_ptr,
    table_ptr,
    page,
    head,
    begin,
    end,
    oldest,
    full,
    full_end,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIBI: tl.constexpr,
    BIAS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax over the positions begin:end of one row's pages; begin is a multiple of BLOCK.

    state: (top [M], total [M], out [M, DIM_PAD]); position: [M], the last one each query sees; slopes: [M] with ALIBI;
    bias: [M] with BIAS, where the BIAS numbers of each query's head begin, by distance; page: block_pages of begin.
    Every query sees all of full:full_end, so that only blocks outside of it are masked. Values before `oldest` or from
    `end` on are never read.
    """
    dims = tl.arange(0, DIM_PAD)
    dim_mask = dims[None, :] < DIM
    block = tl.arange(0, BLOCK)
    LATE_SCALE: tl.constexpr = 1.0 if (SOFT_CAP > 0.0 or ALIBI or BIAS) else SCALE
    for start in range(begin, end, BLOCK):
        seen = start + block
        if PAGE % BLOCK == 0:
            base = (page * PAGE + start % PAGE) * (KV_HEADS * DIM) + head * DIM
            offsets = block[:, None] * (KV_HEADS * DIM) + dims[None, :]
        else:
            base = head * DIM
            offsets = (page * PAGE + seen % PAGE)[:, None] * (KV_HEADS * DIM) + dims[None, :]
        # One block ahead and carried over, so that keys and values do not wait for it: a load that another load of the
        # same turn depends on takes a stage of the pipeline and leaves one buffer less.
        page = block_pages(table_ptr, start + BLOCK, end, PAGE, BLOCK)
        if DIM == DIM_PAD:
            k = tl.load(k_ptr + base + offsets)
        else:
            k = tl.load(k_ptr + base + offsets, mask=dim_mask, other=0.0)
        readable = ((seen >= oldest) & (seen < end))[:, None]
        v = tl.load(v_ptr + base + offsets, mask=readable & dim_mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if SOFT_CAP > 0.0 or ALIBI or BIAS:
            scores = scale_scores(scores, SCALE, SOFT_CAP)
        if ALIBI:
            scores += slopes[:, None] * (seen[None, :] - position[:, None]).to(tl.float32)
        if BIAS:
            behind = position[:, None] - seen[None, :]
            scores = add_bias(scores, bias, behind, full_end - start - BLOCK, BIAS, BIAS)
        if (start < full) | (start + BLOCK > full_end):
            visible = (seen[None, :] <= position[:, None]) & (seen < end)[None, :]
            if WINDOW > 0:
                visible = visible & (seen[None, :] > position[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        state = add_keys(state, scores, v, LATE_SCALE, PRECISION)
    return state


@triton.jit
def _decode_kernel(
    q_ptr,
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
    oldest = 0
    if WINDOW > 0:
        oldest = tl.maximum(kv_len - WINDOW, 0)

    group = tl.arange(0, GROUP_PAD)
    dims = tl.arange(0, DIM_PAD)
    mask = (group < GROUP)[:, None] & (dims < DIM)[None, :]
    heads = head * GROUP + group
    q_offsets = (row * (KV_HEADS * GROUP) + heads)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + q_offsets, mask=mask, other=0.0)
    position = tl.zeros([GROUP_PAD], tl.int32) + (kv_len - 1)
    slopes = per_head(slopes_ptr, heads, group < GROUP, ALIBI)
    bias = bias_ptr + tl.minimum(heads, KV_HEADS * GROUP - 1) * BIAS
    # The sink is in the total of the row's first item, and weighs nothing in others'.
    sinks = per_head(sinks_ptr, heads, group < GROUP, SINKS)
    top, total = start_softmax(tl.where(item == first, sinks, -1e30), SINKS)
    table_ptr += row * MAX_PAGES
    page = block_pages(table_ptr, begin, end, PAGE, BLOCK)
    state = attend_keys(
        (top, total, tl.zeros([GROUP_PAD, DIM_PAD], tl.float32)),
        q,
        position,
        slopes,
        bias,
        k_ptr,
        v_ptr,
        table_ptr,
        page,
        head,
        begin,
        end,
        oldest,
        oldest,
        kv_len,
        SCALE,
        SOFT_CAP,
        WINDOW,
        ALIBI,
        BIAS,
        KV_HEADS,
        DIM,
        DIM_PAD,
        PAGE,
        BLOCK,
        PRECISION,
    )
    finish(
        state, row, head, item, first, items, arrived_ptr, out_ptr, partial_ptr, log_sum_ptr,
        KV_HEADS, GROUP, GROUP_PAD, DIM, DIM_PAD, TOGETHER,
    )  # fmt: skip


@triton.jit
def _extend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    slopes_ptr,
    sinks_ptr,
    bias_ptr,
    work_ptr,
    out_ptr,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    BIAS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """One tile, tokens of one row with the query heads of one KV head, QUERIES at most."""
    # A row's later tiles have more to read: they start first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    row = tl.load(work_ptr + tile * 4)
    first = tl.load(work_ptr + tile * 4 + 1)
    tokens = tl.load(work_ptr + tile * 4 + 2)
    position = tl.load(work_ptr + tile * 4 + 3)  # of the first token, or without causality the last that all see
    if tokens == 0:
        return
    table_ptr += row * MAX_PAGES
    if tokens * GROUP <= 16:
        _extend_tile(
            q_ptr, k_ptr, v_ptr, table_ptr, slopes_ptr, sinks_ptr, bias_ptr, out_ptr, head, first, tokens, position,
            SCALE, SOFT_CAP, WINDOW, ALIBI, SINKS, BIAS, KV_HEADS, GROUP, DIM, DIM_PAD, PAGE, 16, BLOCK, PRECISION,
            CAUSAL,
        )  # fmt: skip
    else:
        _extend_tile(
            q_ptr, k_ptr, v_ptr, table_ptr, slopes_ptr, sinks_ptr, bias_ptr, out_ptr, head, first, tokens, position,
            SCALE, SOFT_CAP, WINDOW, ALIBI, SINKS, BIAS, KV_HEADS, GROUP, DIM, DIM_PAD, PAGE, QUERIES, BLOCK, PRECISION,
            CAUSAL,
        )  # fmt: skip


@triton.jit
def _extend_tile(
    q_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    slopes_ptr,
    sinks_ptr,
    bias_ptr,
    out_ptr,
    head,
    first,
    tokens,
    position,
    SCALE: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    WINDOW: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    BIAS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """first: the tile's first token; position: where it stands, or the last that all see; tokens: how many the tile
    holds."""
    query = tl.arange(0, QUERIES)
    token = query // GROUP
    dims = tl.arange(0, DIM_PAD)
    mask = (token < tokens)[:, None] & (dims < DIM)[None, :]
    places = (first + token) * (KV_HEADS * GROUP) + head * GROUP + query % GROUP
    offsets = places.to(tl.int64)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + offsets, mask=mask, other=0.0)

    # Positions from full to full_end are seen by every query.
    end = tl.maximum(position + tokens if CAUSAL else position + 1, 0)
    full_end = position + 1
    oldest = 0
    full = 0
    if WINDOW > 0:
        oldest = tl.maximum(position - WINDOW + 1, 0)
        full = position + tokens - WINDOW
    begin = oldest // BLOCK * BLOCK
    heads = head * GROUP + query % GROUP
    slopes = per_head(slopes_ptr, heads, token < tokens, ALIBI)
    bias = bias_ptr + heads * BIAS
    top, total = start_softmax(per_head(sinks_ptr, heads, token < tokens, SINKS), SINKS)
    state = (top, total, tl.zeros([QUERIES, DIM_PAD], tl.float32))
    positions = position + (token if CAUSAL else tl.zeros_like(token))
    page = block_pages(table_ptr, begin, end, PAGE, BLOCK)
    state = attend_keys(
        state, q, positions, slopes, bias, k_ptr, v_ptr, table_ptr, page, head, begin, end, oldest, full, full_end,
        SCALE, SOFT_CAP, WINDOW, ALIBI, BIAS, KV_HEADS, DIM, DIM_PAD, PAGE, BLOCK, PRECISION,
    )  # fmt: skip
    _, total, out = state
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)
