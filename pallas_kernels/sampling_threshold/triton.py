# mypy: disallow-untyped-defs=False
"""sampling_threshold in Triton: the search goes through a few thousand of a row's likeliest tokens, if they suffice.

Four kernels, which leave rows without filters at once. The first takes the maxima of many small groups of a row's
logits. How many of the groups have a maximum over some value tells about how many logits are over it: so the second
sets the value over which there are a few thousand. The third collects those and sums up the row. The fourth searches
the threshold among them; or in the whole row, should they hold neither k tokens nor the share top_p of the mass: of
nearly even logits, or where one part of a row has more of them than it has room for. The first and the third are many
programs a row, the others one: a pass of a search waits for all threads of a program.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

_LANES = 128  # logits next to each other that go to one part
_CHUNKS = 64  # as many times, from all over the row, since frequent tokens lie close together
_ROOM = 16384  # candidates of a row, over all of its parts
_AIM = 8192  # how many to collect: parts differ
_BLOCK = 4096  # of what is searched, at a time
_FEW = _BLOCK  # candidates of a row with a small top_k


def sampling_threshold(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """See pallas_kernels.sampling_threshold."""
    rows, vocabulary = logits.shape
    if vocabulary >= 1 << 24:
        raise NotImplementedError(f"{vocabulary} logits are more than float32 can count")
    operands = (logits, top_k, top_p, min_p)
    parts = -(-vocabulary // (_LANES * _CHUNKS))
    room, few = (max(1, whole // (16 * parts)) * 16 for whole in (_ROOM, _FEW))  # of a part, in whole vectors
    shape = {"VOCABULARY": vocabulary, "PARTS": parts, "LANES": _LANES}
    # A row of one part is searched as it is. What is not read is an operand nevertheless.
    maxima = bounds = candidates = held = logits
    if parts > 1:
        maxima = jax_triton.triton_call(
            *operands,
            kernel=_maxima_kernel,
            out_type=jax.ShapeDtypeStruct((rows, parts, _LANES), jnp.float32),
            grid=(parts, rows),
            name="sampling_maxima",
            num_warps=8,
            CHUNKS=_CHUNKS,
            **shape,
        )
        bounds = jax_triton.triton_call(
            *operands,
            maxima,
            kernel=_bounds_kernel,
            out_type=jax.ShapeDtypeStruct((rows, 2), jnp.float32),
            grid=(rows,),
            name="sampling_bounds",
            num_warps=8,
            AIM=_AIM,
            BLOCK=_BLOCK,
            **shape,
        )
        candidates, held = jax_triton.triton_call(
            *operands,
            bounds,
            kernel=_candidates_kernel,
            out_type=(
                jax.ShapeDtypeStruct((rows, parts, room), jnp.float32),
                jax.ShapeDtypeStruct((rows, 3, parts), jnp.float32),
            ),
            grid=(parts, rows),
            name="sampling_candidates",
            num_warps=8,
            CHUNKS=_CHUNKS,
            ROOM_PAD=triton.next_power_of_2(room),
            TOGETHER=16,
            STAGES=3,
            ROOM=room,
            FEW=few,
            **shape,
        )
    threshold: jax.Array = jax_triton.triton_call(
        *operands,
        bounds,
        candidates,
        held,
        kernel=_threshold_kernel,
        out_type=jax.ShapeDtypeStruct((rows,), jnp.float32),
        grid=(rows,),
        name="sampling_threshold",
        num_warps=16,
        PARTS_PAD=triton.next_power_of_2(parts),
        ROOM=room,
        FEW=few,
        BLOCK=_BLOCK,
        **shape,
    )
    return threshold


@triton.jit
def _filters(row, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY: tl.constexpr):
    """A row's top_k, as a float, top_p, the logarithm of min_p, and whether any of them filters."""
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    counted = (top_k > 0) & (top_k < VOCABULARY)
    depth = tl.where(min_p > 0.0, tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("-inf"))
    return tl.where(counted, top_k, VOCABULARY).to(tl.float32), top_p, depth, counted | (top_p < 1.0) | (min_p > 0.0)


@triton.jit
def _room(top_k, FEW: tl.constexpr, ROOM: tl.constexpr):
    """How many candidates a part of a row may have. A small top_k has hardly more candidates than that."""
    return tl.where(top_k <= 256, FEW, ROOM)


@triton.jit
def _extent(source, length, BLOCK: tl.constexpr):
    """Of the values at source: how many are over -inf, the lowest of these, and the highest."""
    place = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.float32)
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in tl.range(0, length, BLOCK, num_stages=3):
        x = tl.load(source + start + place, mask=place < length - start, other=float("-inf"))
        count += (x > float("-inf")).to(tl.float32)
        lowest = tl.minimum(lowest, tl.where(x > float("-inf"), x, float("inf")))
        highest = tl.maximum(highest, x)
    return tl.sum(count, 0), tl.min(lowest, 0), tl.max(highest, 0)


@triton.jit
def _weigh(source, length, least, top, BLOCK: tl.constexpr):
    """Of the values at source that are over -inf and not below `least`: their count, their mass, and the lowest."""
    place = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    for start in tl.range(0, length, BLOCK, num_stages=3):
        x = tl.load(source + start + place, mask=place < length - start, other=float("-inf"))
        kept = (x >= least) & (x > float("-inf"))
        count += kept.to(tl.float32)
        mass += tl.where(kept, tl.exp(x - top), 0.0)
        lowest = tl.minimum(lowest, tl.where(kept, x, float("inf")))
    return tl.sum(count, 0), tl.sum(mass, 0), tl.min(lowest, 0)


@triton.jit
def _search(source, length, low, high, over, target, slack, top, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The highest of the values at source such that the mass of those not below it, or else their count, is `target`
    or more; or one whose mass or count is over it by no more than `slack`.

    low, high: two of the values; the result is one of those between. over: mass or count of those not below `low`.
    Passes halve what lies between and interpolate by turns: the first bounds their number, the second saves a third of
    it. They end at values again, so that ties cost nothing and the end is exact.
    """
    place = tl.arange(0, BLOCK)
    under = 0.0  # of what is above `high`
    share = 0.5
    while (low < high) & (over > target + slack):
        # Not far below the highest, for those who mask with huge numbers; and above `low`, however close they are.
        middle = tl.maximum(share * low + (1.0 - share) * high, high - 128.0)
        middle = tl.where(middle > low, tl.minimum(middle, high), high)
        weight = tl.zeros([BLOCK], tl.float32)
        above = tl.full([BLOCK], float("inf"), tl.float32)
        below = tl.full([BLOCK], float("-inf"), tl.float32)
        for start in tl.range(0, length, BLOCK, num_stages=3):
            x = tl.load(source + start + place, mask=place < length - start, other=float("-inf"))
            reached = x >= middle
            if MASS:
                weight += tl.where(reached, tl.exp(x - top), 0.0)
            else:
                weight += reached.to(tl.float32)
            above = tl.minimum(above, tl.where(reached, x, float("inf")))
            below = tl.maximum(below, tl.where(x < middle, x, float("-inf")))
        total = tl.sum(weight, 0)
        enough = total >= target
        low = tl.where(enough, tl.min(above, 0), low)
        over = tl.where(enough, total, over)
        high = tl.where(enough, high, tl.max(below, 0))
        under = tl.where(enough, under, total)
        interpolated = tl.minimum((target - under) / tl.maximum(over - under, 1e-30), 1.0)
        share = tl.where(share == 0.5, interpolated, 0.5)
    return low


@triton.jit
def _maxima_kernel(
    logits_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The maxima of one part's LANES groups. A group is a lane of all of the part's chunks, from all over the row."""
    part, row = tl.program_id(0), tl.program_id(1)
    _, _, _, filtered = _filters(row, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY)
    if filtered:
        lane = tl.arange(0, LANES)
        place = (tl.arange(0, CHUNKS) * PARTS + part)[:, None] * LANES + lane[None, :]
        logits_ptr += row.to(tl.int64) * VOCABULARY
        x = tl.load(logits_ptr + place, mask=place < VOCABULARY, other=float("-inf"))
        tl.store(maxima_ptr + (row * PARTS + part) * LANES + lane, tl.max(x, 0))


@triton.jit
def _bounds_kernel(
    logits_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    maxima_ptr,
    bounds_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    AIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The value over which a row's candidates are, and its maximum."""
    row = tl.program_id(0)
    top_k, _, _, filtered = _filters(row, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY)
    if filtered:
        GROUPS: tl.constexpr = PARTS * LANES
        maxima_ptr += row * GROUPS
        groups, lowest, top = _extent(maxima_ptr, GROUPS, BLOCK)
        # Of n logits spread evenly over so many groups, a group gets none with a probability of exp(-n / groups).
        aim = groups * (1.0 - tl.exp(-AIM / tl.maximum(groups, 1.0)))
        aim = tl.minimum(aim, top_k)  # there are at least as many logits as groups
        slack = 0.125 * tl.minimum(aim, groups - aim)  # close to all groups, a few more would be many more logits
        least = _search(maxima_ptr, GROUPS, lowest, top, groups, aim, slack, top, False, BLOCK)
        least = tl.where(groups < GROUPS // 4, float("-inf"), least)  # where most is masked, all the rest
        tl.store(bounds_ptr + row * 2, least)
        tl.store(bounds_ptr + row * 2 + 1, top)


@triton.jit
def _candidates_kernel(
    logits_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    bounds_ptr,
    candidates_ptr,
    held_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNKS: tl.constexpr,
    LANES: tl.constexpr,
    ROOM: tl.constexpr,
    FEW: tl.constexpr,
    ROOM_PAD: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One part's candidates, as far as there is room; how many there are; count and mass of what min-p keeps."""
    part, row = tl.program_id(0), tl.program_id(1)
    top_k, _, depth, filtered = _filters(row, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY)
    if filtered:
        TAKEN: tl.constexpr = TOGETHER * LANES
        least = tl.load(bounds_ptr + row * 2)
        top = tl.load(bounds_ptr + row * 2 + 1)
        room = _room(top_k, FEW, ROOM)
        candidates_ptr += row * (PARTS * ROOM) + part * room
        found_before = 0
        kept_count = tl.zeros([TAKEN], tl.float32)
        mass = tl.zeros([TAKEN], tl.float32)
        logits_ptr += row.to(tl.int64) * VOCABULARY
        index = tl.arange(0, TAKEN)
        for chunk in tl.range(0, CHUNKS, TOGETHER, num_stages=STAGES):
            place = ((chunk + index // LANES) * PARTS + part) * LANES + index % LANES
            x = tl.load(logits_ptr + place, mask=place < VOCABULARY, other=float("-inf"))
            kept = (x >= top + depth) & (x > float("-inf"))
            kept_count += kept.to(tl.float32)
            mass += tl.where(kept, tl.exp(x - top), 0.0)
            found = (kept & (x >= least)).to(tl.int32)
            slot = found_before + tl.cumsum(found, 0) - 1
            tl.store(candidates_ptr + slot, x, mask=(found > 0) & (slot < room))
            found_before += tl.sum(found, 0)
        rest = tl.arange(0, ROOM_PAD)
        tl.store(candidates_ptr + rest, float("-inf"), mask=(rest >= found_before) & (rest < room))
        held_ptr += row * 3 * PARTS + part
        tl.store(held_ptr, found_before)
        tl.store(held_ptr + PARTS, tl.sum(kept_count, 0))
        tl.store(held_ptr + 2 * PARTS, tl.sum(mass, 0))


@triton.jit
def _threshold_kernel(
    logits_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    bounds_ptr,
    candidates_ptr,
    held_ptr,
    threshold_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    LANES: tl.constexpr,
    ROOM: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0)
    top_k, top_p, depth, filtered = _filters(row, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY)
    threshold = float("-inf")
    if filtered:
        source = logits_ptr + row.to(tl.int64) * VOCABULARY
        length = VOCABULARY
        if PARTS == 1:
            _, _, top = _extent(source, length, BLOCK)
            count, mass, threshold = _weigh(source, length, top + depth, top, BLOCK)
            found, found_mass = count, mass
        else:
            top = tl.load(bounds_ptr + row * 2 + 1)
            part = tl.arange(0, PARTS_PAD)
            inside = part < PARTS
            held_ptrs = held_ptr + row * 3 * PARTS + part
            fullest = tl.max(tl.load(held_ptrs, mask=inside, other=0.0), 0)
            count = tl.sum(tl.load(held_ptrs + PARTS, mask=inside, other=0.0), 0)
            mass = tl.sum(tl.load(held_ptrs + 2 * PARTS, mask=inside, other=0.0), 0)
            room = _room(top_k, FEW, ROOM)
            candidates = candidates_ptr + row * (PARTS * ROOM)
            found, found_mass, threshold = _weigh(candidates, PARTS * room, float("-inf"), top, BLOCK)
            of_mass = (top_p < 1.0) & (found_mass >= top_p * mass)
            enough = (found == count) | tl.where(top_k < count, found >= top_k, of_mass)
            if (fullest <= room) & enough:
                source = candidates
                length = PARTS * room
            else:
                found, found_mass, threshold = _weigh(source, length, top + depth, top, BLOCK)
        if top_k < count:
            threshold = _search(source, length, threshold, top, found, top_k, 0.0, top, False, BLOCK)
            _, found_mass, _ = _weigh(source, length, threshold, top, BLOCK)
            mass = found_mass
        if top_p < 1.0:
            threshold = _search(source, length, threshold, top, found_mass, top_p * mass, 0.0, top, True, BLOCK)
    tl.store(threshold_ptr + row, threshold)
