"""paged_attention in plain XLA: tiles of one row's queries, blocks of pages, online softmax in float32.

attend_rows serves the other attentions over ragged rows too: they differ in where keys and values come from.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.schedule import share_out

BLOCK_TOKENS = 256  # keys gathered at once; rows that can hold no more need no loop
# Queries attended at once in an extend step: a CPU gains from skipping what is not needed, a GPU from width.
_CPU_GROUP_TOKENS = 64
_GROUP_TOKENS = 2048
Read = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""The keys and values, [N, span, KH, D] and [N, span, KH, DV], that the rows [N] hold in their block of one number."""

_NEVER = -1e30  # a finite stand-in for -inf, so that a query that sees nothing yields no NaN


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
    span, blocks, gather = paged((k_pages, v_pages), page_table)

    def read(row: jax.Array, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        k, v = gather(row, block)
        return k, v

    return attend_rows(
        q,
        read,
        query_start,
        kv_len,
        span=span,
        blocks=blocks,
        kv_heads=k_pages.shape[2],
        value_dim=v_pages.shape[3],
        scale=scale,
        causal=causal,
        window=window,
        soft_cap=soft_cap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        # By distance behind the query here, from the furthest on there.
        position_bias=None if position_bias is None else position_bias[:, ::-1],
        furthest=0 if position_bias is None else position_bias.shape[1] - 1,
        decode=decode,
    )


def paged(
    pools: tuple[jax.Array, ...], page_table: jax.Array
) -> tuple[int, int, Callable[[jax.Array, jax.Array], list[jax.Array]]]:
    """How attend_rows gets at pools [pages, page, KH, D] by a page table [R, MP].

    Returns span and blocks, and what gathers from each pool [N, span, KH, D] for rows [N] and a block's number.
    """
    page = pools[0].shape[1]
    pages = min(page_table.shape[1], max(1, BLOCK_TOKENS // page))
    page_table = jnp.pad(page_table, ((0, 0), (0, -page_table.shape[1] % pages)))

    def gather(row: jax.Array, block: jax.Array) -> list[jax.Array]:
        table = jax.lax.dynamic_slice_in_dim(page_table, block * pages, pages, axis=1)[row]
        return [pool[table].reshape(row.shape[0], pages * page, *pool.shape[2:]) for pool in pools]

    return pages * page, page_table.shape[1] // pages, gather


def attend_rows(
    q: jax.Array,
    read: Read,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    span: int,
    blocks: int,
    kv_heads: int,
    value_dim: int,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    sinks: jax.Array | None = None,
    position_bias: jax.Array | None = None,
    furthest: int = 0,
    decode: bool = False,
) -> jax.Array:
    """Attention of ragged rows over what `read` yields of each row, which no row has more of than blocks * span.

    q, query_start, kv_len, scale, decode and the result are those of paged_attention. causal: a query sees the
    positions up to its own, else all of its row; with a window those nearer than it. position_bias: [H, N] float32,
    added to the scores of keys by their place less the query's, the first for those `furthest` before it or further.
    """
    attend = functools.partial(
        _attend,
        read=read,
        span=span,
        blocks=blocks,
        kv_heads=kv_heads,
        value_dim=value_dim,
        scale=scale,
        causal=causal,
        window=window,
        soft_cap=soft_cap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        position_bias=position_bias,
        furthest=furthest,
    )
    tokens, rows = q.shape[0], kv_len.shape[0]
    if decode:
        return attend(q[:, None], kv_len[:, None] - 1, jnp.arange(rows, dtype=jnp.int32), kv_len)[:, 0]

    tile = min(256, max(16, 1 << (tokens // rows).bit_length() - 1))
    at_once = max(1, (_CPU_GROUP_TOKENS if jax.default_backend() == "cpu" else _GROUP_TOKENS) // tile)
    groups = -(-(-(-tokens // tile) + rows) // at_once)
    counts = (query_start[1:] - query_start[:-1] + tile - 1) // tile
    tile_row, tile_place, first_tile = share_out(counts, groups * at_once)

    def attend_group(group: jax.Array, tiles_out: jax.Array) -> jax.Array:
        row, place = (jax.lax.dynamic_slice_in_dim(x, group * at_once, at_once) for x in (tile_row, tile_place))
        first = query_start[row] + place * tile
        index = first[:, None] + jnp.arange(tile, dtype=jnp.int32)[None, :]
        end = jnp.where(row >= 0, query_start[row + 1], 0)[:, None]
        position = kv_len[row][:, None] - end + index
        # Not causal, a row may have more queries than keys, which have no places of their own.
        position = jnp.where(index < end, position if causal else jnp.maximum(position, 0), -1)
        out = attend(q[jnp.minimum(index, tokens - 1)], position, row, kv_len[row])
        return tiles_out.at[group].set(out)

    tiles_out = jnp.zeros((groups, at_once, tile, q.shape[1], value_dim), q.dtype)
    tiles_out = jax.lax.fori_loop(0, (first_tile[-1] + at_once - 1) // at_once, attend_group, tiles_out)
    token = jnp.arange(tokens, dtype=jnp.int32)
    row = jnp.searchsorted(query_start[1:], token, side="right", method="compare_all")
    row = jnp.minimum(row.astype(jnp.int32), rows - 1)
    place = jnp.where(token < query_start[-1], first_tile[row] * tile + token - query_start[row], -1)
    out = tiles_out.reshape(-1, q.shape[1], value_dim)[jnp.maximum(place, 0)]
    return jnp.where((place >= 0)[:, None, None], out, 0)


def _attend(
    q: jax.Array,
    position: jax.Array,
    row: jax.Array,
    kv_len: jax.Array,
    *,
    read: Read,
    span: int,
    blocks: int,
    kv_heads: int,
    value_dim: int,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    alibi_slopes: jax.Array | None,
    sinks: jax.Array | None,
    position_bias: jax.Array | None,
    furthest: int,
) -> jax.Array:
    """q: [N, B, H, D], N tiles of one row each; position: [N, B], -1 sees nothing; row, kv_len: [N]."""
    num, size, heads, dim = q.shape
    q32 = q.astype(jnp.float32).reshape(num, size, kv_heads, heads // kv_heads, dim) * jnp.float32(scale)
    last = position if causal else jnp.where(position >= 0, kv_len[:, None] - 1, -1)
    if window is not None:
        first, last = position - window + 1, jnp.minimum(last, position + window - 1)
        last = jnp.where(position >= 0, last, -1)
    dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

    def attend_block(block: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, out = state
        seen = (block * span + jnp.arange(span, dtype=jnp.int32))[None, None, :]
        visible = seen <= last[:, :, None]
        if window is not None:
            visible &= seen >= first[:, :, None]
        k, v = (x.astype(jnp.float32) for x in read(row, block))
        v = jnp.where(visible.any(axis=1)[:, :, None, None], v, 0.0)
        scores = dot("nbkgd,nskd->nkgbs", q32, k)
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        distance = seen - position[:, :, None]
        if alibi_slopes is not None:
            scores += alibi_slopes.reshape(1, kv_heads, -1, 1, 1) * distance.astype(jnp.float32)[:, None, None]
        if position_bias is not None:
            bias = position_bias[:, jnp.clip(distance + furthest, 0, position_bias.shape[1] - 1)]
            scores += jnp.moveaxis(bias, 0, 1).reshape(scores.shape)
        scores = jnp.where(visible[:, None, None], scores, _NEVER)
        higher = jnp.maximum(top, scores.max(axis=-1))
        weights = jnp.where(visible[:, None, None], jnp.exp(scores - higher[..., None]), 0.0)
        shrink = jnp.exp(top - higher)
        return (
            higher,
            total * shrink + weights.sum(axis=-1),
            out * shrink[..., None] + dot("nkgbs,nskd->nkgbd", weights, v),
        )

    shape = (num, kv_heads, heads // kv_heads, size)
    state: tuple[jax.Array, ...] = (jnp.full(shape, _NEVER), jnp.zeros(shape), jnp.zeros((*shape, value_dim)))
    if sinks is not None:
        state = (jnp.broadcast_to(sinks.reshape(1, kv_heads, -1, 1), shape), jnp.ones(shape), state[2])
    if blocks == 1:
        state = attend_block(jnp.int32(0), state)
    else:
        start = jnp.int32(0)
        if window is not None:
            oldest = jnp.where(position >= 0, first, jnp.iinfo(jnp.int32).max).min()
            start = jnp.maximum(oldest, 0) // span
        state = jax.lax.fori_loop(start, last.max() // span + 1, attend_block, state)
    _, total, out = state
    out = out / jnp.where(total > 0.0, total, 1.0)[..., None]
    return jnp.moveaxis(out, 3, 1).reshape(num, size, heads, value_dim).astype(q.dtype)
