# mypy: disallow-untyped-defs=False
"""paged_attention's extends on Hopper's tensor cores, in Mosaic GPU, after FlashAttention-3 (Shah et al. 2024).

A tile is 64 tokens of one row with two query heads of a KV head (128 tokens with one head where a group is odd). Two
warpgroups compute 64 queries each and take turns at the tensor cores, so that one's softmax runs beside the other's
products; a third fetches the row's pages into shared memory ahead of them. Rows of a single token read too much for
what they compute: Triton's decode kernel serves them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention import triton
from pallas_kernels.paged_attention.schedule import share_out

_LOG2_E = 1.4426950408889634
_QUERIES = 64  # of a warpgroup
_BLOCK = 128  # keys of a turn
_STAGES = 2  # blocks of keys and values in shared memory
_LEAST_TOKENS = 1024  # a step of fewer has no work for tiles of this size


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
    if decode:
        raise NotImplementedError("decodes are bound by memory, which Triton's kernel reads as fast")
    if not causal:
        raise NotImplementedError("queries see what stands before them")
    if any(x is not None for x in (window, soft_cap, alibi_slopes, sinks, position_bias)):
        raise NotImplementedError("it knows no windows, soft caps, slopes, sinks or biases")
    tokens, _, dim = q.shape
    page = k_pages.shape[1]
    device = jax.devices()[0]
    if device.platform == "gpu" and device.compute_capability != "9.0":
        raise NotImplementedError(f"compute capability {device.compute_capability} is not 9.0")
    if q.dtype != k_pages.dtype or q.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"queries are {q.dtype} and pools {k_pages.dtype}: both must be one half type")
    if dim not in (64, 128) or page % 64:
        raise NotImplementedError(f"head_dim {dim} is not 64 or 128, or page size {page} no multiple of 64")
    if tokens < _LEAST_TOKENS:
        raise NotImplementedError(f"{tokens} tokens are under {_LEAST_TOKENS}")
    single = query_start[1:] - query_start[:-1] == 1
    place = jnp.where(single, query_start[:-1], tokens)
    alone = triton.paged_attention(
        q.at[place].get(mode="clip"), k_pages, v_pages, page_table, query_start, jnp.where(single, kv_len, 0),
        scale=scale, causal=True, window=None, soft_cap=None, alibi_slopes=None, sinks=None, position_bias=None,
        decode=True,
    )  # fmt: skip
    out = extend(q, k_pages, v_pages, page_table, query_start, kv_len, scale=scale)
    return out.at[place].set(alone, mode="drop")


def extend(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    interpret: Any = None,
) -> jax.Array:
    """[T, H, D]: the rows of more than one token, and zeros for padding tokens; rows of one token are not written.

    interpret: plgpu.InterpretGPUParams() to run without a GPU.
    """
    tokens, heads, dim = q.shape
    page, kv_heads = k_pages.shape[1:3]
    rows, max_pages = page_table.shape
    group = heads // kv_heads
    heads_of_tile = 2 if group % 2 == 0 else 1
    size = 2 * _QUERIES // heads_of_tile  # tokens a tile holds
    part = min(page, _BLOCK)  # keys that lie together in a block

    # The padding tokens are one row more, of no length: it yields their zeros.
    starts = jnp.concatenate([query_start, jnp.full((1,), tokens, jnp.int32)])
    counts = starts[1:] - starts[:-1]
    counts = jnp.where((counts == 1) & (jnp.arange(rows + 1, dtype=jnp.int32) < rows), 0, counts)
    tiles = -(-tokens // size) + rows + 1
    row, place, _ = share_out((counts + size - 1) // size, tiles)
    first, row_end = starts[row] + place * size, starts[row + 1]
    held = jnp.where(row < 0, 0, jnp.minimum(row_end - first, size))
    # The first token's position is negative in the row of padding: it sees nothing.
    length = jnp.pad(kv_len, (0, 1))[row]
    position = length - row_end + first
    work = jnp.stack([jnp.clip(row, 0, rows - 1), first, held, position, length], axis=1)

    def kernel(q_ref, k_ref, v_ref, table_ref, work_ref, out_ref, q_smem, k_smem, v_smem, barriers, staged=None):
        warpgroup = lax.axis_index("warpgroup")
        # A row's later tiles have more to read: they start first.
        tile = tiles - 1 - lax.axis_index("tile")
        row, first = work_ref[tile, 0], work_ref[tile, 1]
        held, position, length = work_ref[tile, 2], work_ref[tile, 3], work_ref[tile, 4]
        head = lax.axis_index("heads") * heads_of_tile
        end = position + held  # of the keys that the tile's tokens see
        steps = lax.div(jnp.maximum(end, 0) + (_BLOCK - 1), _BLOCK)
        seen_by_all = lax.div(jnp.maximum(position + 1, 0), _BLOCK)  # blocks that need no mask

        @pl.when((warpgroup < 2) & (held > 0))
        def _():
            plgpu.set_max_registers(232, action="increase")
            shift = 0 if heads_of_tile == 2 else warpgroup * _QUERIES
            mine = head + (warpgroup if heads_of_tile == 2 else 0)
            queries = q_smem.at[warpgroup]
            plgpu.copy_gmem_to_smem(
                q_ref.at[pl.ds(first + shift, _QUERIES), mine], queries, barriers.q_ready.at[warpgroup]
            )
            plgpu.barrier_wait(barriers.q_ready.at[warpgroup])
            out = _attend(
                queries, k_smem, v_smem, barriers, staged, warpgroup, position + shift, length, steps, seen_by_all,
                scale,
            )  # fmt: skip
            queries[...] = out.astype(q.dtype)
            plgpu.commit_smem()
            _store(queries, out_ref, first + shift, mine, jnp.clip(held - shift, 0, _QUERIES))

        @pl.when((warpgroup == 2) & (held > 0))
        def _():
            plgpu.set_max_registers(40, action="decrease")
            kv_head = lax.div(head, group)

            def pages_of(step):
                columns = [lax.div(step * _BLOCK + i * part, page) for i in range(_BLOCK // part)]
                return tuple(table_ref[row, jnp.minimum(column, max_pages - 1)] for column in columns)

            def copy(pages, step, ref, smem, ready):
                slot = lax.rem(step, _STAGES)
                for i, number in enumerate(pages):
                    inside = pl.ds(lax.rem(step * _BLOCK + i * part, page), part) if page > part else slice(None)
                    plgpu.copy_gmem_to_smem(
                        ref.at[number, inside, kv_head], smem.at[slot, pl.ds(i * part, part)], ready.at[slot]
                    )

            def fetch(step, pages):
                following = pages_of(step + 1)  # looked up before this block waits for its place

                def when_free(taken):
                    pl.when(step >= _STAGES)(lambda: plgpu.barrier_wait(taken.at[lax.rem(step, _STAGES)]))

                when_free(barriers.k_taken)
                copy(pages, step, k_ref, k_smem, barriers.k_ready)
                when_free(barriers.v_taken)
                copy(pages, step, v_ref, v_smem, barriers.v_ready)
                return following

            lax.fori_loop(0, steps, fetch, pages_of(jnp.int32(0)))

    def entry(*refs):
        tiled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
        pl.run_scoped(
            lambda q_smem, k_smem, v_smem, barriers, *staged: kernel(
                *refs, q_smem, k_smem, v_smem, _Barriers(*barriers), *staged
            ),
            plgpu.SMEM((2, _QUERIES, dim), q.dtype),
            plgpu.SMEM((_STAGES, _BLOCK, dim), q.dtype, transforms=tiled),
            plgpu.SMEM((_STAGES, _BLOCK, dim), q.dtype, transforms=tiled),
            _Barriers.scratch(parts=_BLOCK // part),
            *(() if interpret is None else (plgpu.SMEM((2, _QUERIES, _BLOCK), q.dtype),)),
            collective_axes="warpgroup",
        )

    result: jax.Array = plgpu.kernel(
        entry,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(heads // heads_of_tile, tiles),
        grid_names=("heads", "tile"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(q, k_pages, v_pages, page_table, work)
    return result


class _Barriers:
    """By what the warpgroups wait for each other.

    q_ready: queries are there, by warpgroup. k_ready, v_ready: a block is there; k_taken, v_taken: both warpgroups
    have read it, by place in shared memory. turn: both change places at the tensor cores.
    """

    def __init__(self, q_ready, k_ready, v_ready, k_taken, v_taken, turn):
        self.q_ready, self.turn = q_ready, turn
        self.k_ready, self.v_ready, self.k_taken, self.v_taken = k_ready, v_ready, k_taken, v_taken

    @staticmethod
    def scratch(parts: int):
        """What to allocate; parts: copies that bring a block."""
        ready = plgpu.Barrier(num_arrivals=parts, num_barriers=_STAGES)
        taken = plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES)
        return plgpu.Barrier(num_barriers=2), ready, ready, taken, taken, plgpu.Barrier(num_arrivals=2)


def _attend(queries, k_smem, v_smem, barriers, staged, warpgroup, position, length, steps, seen_by_all, scale):
    """[64, D] float32: what 64 queries, the first at `position`, make of the tile's keys.

    length: of the row, behind which keys and values are nobody's; steps: blocks that the tile reads, the first
    `seen_by_all` of them without a mask.
    """
    dim = k_smem.shape[-1]
    layout = plgpu.Layout.WGMMA
    # In registers: rows may begin anywhere, which shared memory tiled for the tensor cores does not allow.
    operand = plgpu.load(queries, layout=layout, optimized=False) if staged is None else queries

    def per_query(value):
        return plgpu.layout_cast(jnp.full((_QUERIES,), value, jnp.float32), layout.reduce(1))

    def change_places():
        plgpu.barrier_arrive(barriers.turn)
        plgpu.barrier_wait(barriers.turn)

    def block(step, state, masked):
        out, top, total = state
        slot = lax.rem(step, _STAGES)
        start = step * _BLOCK

        def product(scores):
            plgpu.wgmma(scores, operand, k_smem.at[slot].transpose((1, 0)))
            change_places()
            return scores[...]

        scores = pl.run_scoped(product, plgpu.ACC((_QUERIES, _BLOCK), jnp.float32))
        plgpu.barrier_arrive(barriers.k_taken.at[slot])
        if masked:
            query, key = (plgpu.broadcasted_iota(jnp.int32, scores.shape, axis, layout=layout) for axis in (0, 1))
            scores = jnp.where(key + start <= query + position, scores, -jnp.inf)
        higher = jnp.maximum(top, scores.max(axis=1) * (scale * _LOG2_E))
        shrink = jnp.exp2(top - higher)
        weights = jnp.exp2(scores * (scale * _LOG2_E) - lax.broadcast_in_dim(higher, scores.shape, [0]))
        total = total * shrink + weights.sum(axis=1)
        out = out * lax.broadcast_in_dim(shrink, out.shape, [0])
        narrow = weights.astype(k_smem.dtype)
        out, total, higher, narrow = lax.optimization_barrier((out, total, higher, narrow))
        plgpu.barrier_arrive(barriers.turn)
        plgpu.barrier_wait(barriers.v_ready.at[slot])
        if masked:
            _clear(v_smem.at[slot], length - start)
        plgpu.barrier_wait(barriers.turn)
        if staged is not None:
            staged.at[warpgroup][...] = narrow
            narrow = staged.at[warpgroup]

        def mix(sums):
            plgpu.wgmma(sums, narrow, v_smem.at[slot])
            following = step + 1
            pl.when(following < steps)(lambda: plgpu.barrier_wait(barriers.k_ready.at[lax.rem(following, _STAGES)]))

        if staged is None:
            out = pl.run_state(mix)(plgpu.ACC.init(out))
        else:
            out += pl.run_scoped(lambda sums: (mix(sums), sums[...])[1], plgpu.ACC(out.shape, jnp.float32))
        plgpu.barrier_arrive(barriers.v_taken.at[slot])
        return out, higher, total

    pl.when(steps > 0)(lambda: plgpu.barrier_wait(barriers.k_ready.at[0]))
    pl.when(warpgroup == 1)(change_places)
    # A finite lowest score: a query that sees nothing keeps total 0 instead of inf - inf.
    out = plgpu.layout_cast(jnp.zeros((_QUERIES, dim), jnp.float32), layout)
    state = (out, per_query(-1e30), per_query(0.0))
    state = lax.fori_loop(0, seen_by_all, lambda step, state: block(step, state, False), state)
    state = lax.fori_loop(seen_by_all, steps, lambda step, state: block(step, state, True), state)
    pl.when(warpgroup == 0)(change_places)
    out, _, total = state
    return out / lax.broadcast_in_dim(jnp.where(total > 0.0, total, 1.0), out.shape, [0])


def _clear(values, seen):
    """Zeroes a block's values from place `seen` on, which are nobody's: NaN there would survive a weight of zero.

    Both warpgroups do it, each before it reads; what they write is the same.
    """
    half = _BLOCK // 2
    for begin in range(0, _BLOCK, half):

        @pl.when(seen < begin + half)
        def _(begin=begin):
            ref = values.at[pl.ds(begin, half)]
            place = plgpu.broadcasted_iota(jnp.int32, ref.shape, 0, layout=plgpu.Layout.WGMMA)
            kept = plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)
            ref[...] = jnp.where(place + begin < seen, kept, jnp.zeros_like(kept))
            plgpu.commit_smem()


def _store(results, out_ref, first, head, held):
    """The first `held` of 64 results to a head's tokens from `first` on; those behind are another row's."""

    @pl.when(held == _QUERIES)
    def _():
        plgpu.copy_smem_to_gmem(results, out_ref.at[pl.ds(first, _QUERIES), head])

    @pl.when(held < _QUERIES)
    def _():
        @pl.loop(0, held)
        def _(query):
            plgpu.copy_smem_to_gmem(results.at[pl.ds(query, 1)], out_ref.at[pl.ds(first + query, 1), head])

    plgpu.wait_smem_to_gmem(0)
