# mypy: disallow-untyped-defs=False
"""mla_attention in Triton: a block of latents is read once, for the scores and for the values.

Decode cuts the rows into items, as paged_attention does. Extend takes every token for a row of its own: with the 64 to
128 heads of the models in use a token's heads fill the tensor cores by themselves.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.paged_attention.schedule import share_keys
from pallas_kernels.paged_attention.softmax import add_keys, start_softmax
from pallas_kernels.paged_attention.split import block_pages, combine

_LOG2_E = 1.4426950408889634
_MAX_RANK = 512
_MAX_ITEMS = 65535  # a grid's second axis has no more


def mla_attention(
    q: jax.Array,
    latent_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    rank: int,
    scale: float,
    decode: bool,
) -> jax.Array:
    """See pallas_kernels.mla_attention."""
    tokens, heads, width = q.shape
    page, rows = latent_pages.shape[1], page_table.shape[0]
    if rank > _MAX_RANK:
        raise NotImplementedError(f"rank {rank} is over {_MAX_RANK}")
    if rank == width:
        raise NotImplementedError("latents without a rotated key")
    if q.dtype != latent_pages.dtype or q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(
            f"queries are {q.dtype} and latents {latent_pages.dtype}: both must be one float type"
        )
    if page & (page - 1) or page < 8:
        raise NotImplementedError(f"page size {page} is not a power of two of at least 8")
    wide = q.dtype.itemsize == 4
    together = min(16 if wide else 64, max(16, triton.next_power_of_2(heads)))  # heads of one program
    config = tuning.config(
        "mla_attention",
        "decode",
        # programs: how many share the work of an evenly filled GPU; least: the fewest tokens worth an item.
        {
            "heads": together,
            "block": 32,
            "warps": 8 if wide or together >= 32 else 4,
            "stages": 2 if wide else 3,
            "programs": 132 if together == 64 else 264,
            "least": 128,
        },
        rank=rank,
        bytes=q.dtype.itemsize,
        page=page,
    )
    blocks = -(-heads // config["heads"])
    if decode:
        work, first = share_keys(
            jnp.zeros_like(kv_len),
            kv_len,
            block=config["block"],
            aim=max(1, config["programs"] // blocks),
            least=config["least"],
            capacity=page_table.shape[1] * page,
        )
        work = jnp.stack([work[:, 0], work[:, 1], work[:, 2], work[:, 0]], axis=1)
    else:
        token = jnp.arange(tokens, dtype=jnp.int32)
        row = jnp.searchsorted(query_start[1:], token, side="right", method="compare_all").astype(jnp.int32)
        end = jnp.pad(kv_len - query_start[1:], (0, 1))[row] + token + 1
        end = jnp.where(row < rows, end, 0)
        work = jnp.stack([token, jnp.zeros_like(token), end, jnp.minimum(row, rows - 1)], axis=1)
    items = work.shape[0]
    if items > _MAX_ITEMS:
        raise NotImplementedError(f"{items} items are over {_MAX_ITEMS}")
    out, log_sum = jax_triton.triton_call(
        q,
        latent_pages,
        page_table,
        work,
        kernel=_mla_attention_kernel,
        out_type=(
            jax.ShapeDtypeStruct((items, heads, rank), jnp.float32 if decode else q.dtype),
            jax.ShapeDtypeStruct((items, heads), jnp.float32),
        ),
        grid=(blocks, items),
        name="mla_decode" if decode else "mla_extend",
        num_warps=config["warps"],
        num_stages=config["stages"],
        SCALE=scale * _LOG2_E,
        HEADS=heads,
        M=config["heads"],
        RANK=rank,
        RANK_PAD=max(16, triton.next_power_of_2(rank)),
        TURNED=width - rank,
        TURNED_PAD=max(16, triton.next_power_of_2(width - rank)),
        PAGE=page,
        MAX_PAGES=page_table.shape[1],
        BLOCK=config["block"],
        PRECISION="tf32x3",  # of float32 operands, on tensor cores, with an error near float32's own
        SPLIT=decode,
    )
    return _combine(out, log_sum, first, q.dtype) if decode else out


def _combine(partial: jax.Array, log_sum: jax.Array, first: jax.Array, dtype: Any) -> jax.Array:
    """Each row's result from those of its items, [rows, H, R] in dtype; zeros for a row without positions.

    partial: [items, H, R] and log_sum: [items, H] float32, each item's result and the log2 of its total of weights;
    first: [rows + 1], the first item of each row. Not done by the item that ends last, as in paged_attention: of a long
    row it would read up to 64 heads of 512 numbers for each of many items, by itself.
    """
    _, heads, rank = partial.shape
    rows, padded = first.shape[0] - 1, triton.next_power_of_2(rank)
    out: jax.Array = jax_triton.triton_call(
        partial,
        log_sum,
        first,
        kernel=_combine_kernel,
        out_type=jax.ShapeDtypeStruct((rows, heads, rank), dtype),
        grid=(heads, rows),
        name="mla_decode_combine",
        num_warps=4,
        num_stages=2,
        HEADS=heads,
        RANK=rank,
        RANK_PAD=padded,
        TOGETHER=max(1, min(32, 4096 // padded)),
    )
    return out


@triton.jit
def _mla_attention_kernel(
    q_ptr,
    latent_ptr,
    table_ptr,
    work_ptr,
    out_ptr,
    log_sum_ptr,
    SCALE: tl.constexpr,
    HEADS: tl.constexpr,
    M: tl.constexpr,
    RANK: tl.constexpr,
    RANK_PAD: tl.constexpr,
    TURNED: tl.constexpr,
    TURNED_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    MAX_PAGES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """M heads of one item: a token, the positions begin:end it sees, its row. If SPLIT, the log2 sum of weights too."""
    item = tl.program_id(1)
    token = tl.load(work_ptr + item * 4)
    begin = tl.load(work_ptr + item * 4 + 1)
    end = tl.load(work_ptr + item * 4 + 2)
    row = tl.load(work_ptr + item * 4 + 3)
    if token < 0:
        return
    WIDTH: tl.constexpr = RANK + TURNED
    head = tl.program_id(0) * M + tl.arange(0, M)
    dims = tl.arange(0, RANK_PAD)
    turned = tl.arange(0, TURNED_PAD)
    place = q_ptr + (token.to(tl.int64) * HEADS + head)[:, None] * WIDTH
    known = (head < HEADS)[:, None]
    q = tl.load(place + dims[None, :], mask=known & (dims < RANK)[None, :], other=0.0)
    q_turned = tl.load(place + RANK + turned[None, :], mask=known & (turned < TURNED)[None, :], other=0.0)

    table_ptr += row * MAX_PAGES
    top, total = start_softmax(tl.zeros([M], tl.float32), False)
    out = tl.zeros([M, RANK_PAD], tl.float32)
    page = block_pages(table_ptr, begin, end, PAGE, BLOCK)
    for start in range(begin, end, BLOCK):
        seen = start + tl.arange(0, BLOCK)
        slots = (page * PAGE + seen % PAGE)[:, None] * WIDTH
        page = block_pages(table_ptr, start + BLOCK, end, PAGE, BLOCK)
        visible = seen < end
        latent = tl.load(latent_ptr + slots + dims[None, :], mask=visible[:, None] & (dims < RANK)[None, :], other=0.0)
        key = tl.load(
            latent_ptr + slots + RANK + turned[None, :], mask=visible[:, None] & (turned < TURNED)[None, :], other=0.0
        )
        scores = tl.dot(q, tl.trans(latent), input_precision=PRECISION)
        scores = tl.dot(q_turned, tl.trans(key), scores, input_precision=PRECISION)
        if start + BLOCK > end:
            scores = tl.where(visible[None, :], scores, float("-inf"))
        top, total, out = add_keys((top, total, out), scores, latent, SCALE, PRECISION)
    total = tl.where(total > 0.0, total, 1.0)  # of what sees nothing
    out = out / total[:, None]
    places = item.to(tl.int64) * HEADS + head
    mask = known & (dims < RANK)[None, :]
    tl.store(out_ptr + places[:, None] * RANK + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
    if SPLIT:
        tl.store(log_sum_ptr + places, top + tl.log2(total), mask=head < HEADS)


@triton.jit
def _combine_kernel(
    partial_ptr,
    log_sum_ptr,
    first_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    RANK: tl.constexpr,
    RANK_PAD: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """The items of one row and query head."""
    head = tl.program_id(0)
    row = tl.program_id(1)
    first = tl.load(first_ptr + row)
    end = tl.load(first_ptr + row + 1)
    combine(partial_ptr, log_sum_ptr, out_ptr, row, first, end, head, HEADS, 1, RANK, RANK_PAD, TOGETHER)
