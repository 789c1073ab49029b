# mypy: disallow-untyped-defs=False
"""sampling_threshold in Triton: a sample of a row tells about where the threshold is, and what is there is searched.

A vocabulary of up to _ROOM tokens is searched by one kernel, in registers. A larger one takes four, which leave rows
that need nothing of them at once:

1. masses: what a row weighs. Rows cut by top-k need not know.
2. bounds: every V/4096-th logit says between which two values the threshold is. Of masses it is the sum of the little
   ones, below the threshold, that a sample tells well, however much a few tokens weigh that it has not seen.
3. candidates: collects the logits between the bounds, and sums up what is above them.
4. threshold: searches it among the candidates, in registers.

So the result is exact wherever the bounds are right; where they are not (by odds of a million to one, or where more
tokens than there is room for are equal) the fourth kernel searches the whole row, slowly.

The first and the third kernel are many programs a row, which read at the memory's pace. The others are one, since a
pass of a search waits for all of a program's threads: passes are few, as each weighs what is not below several values.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.sampling_threshold import GREEDY_BELOW

_LANES = 1024  # logits side by side, of which a thread holds four, and those of as many places as are read together
_PART = 24  # such places of a part of a row, at the least
_PARTS = 16  # of a row, at the most
_SAMPLE = 4096  # logits from all over a row
_ROOM = 16384  # candidates of a row, over all of its parts
_FEW = 2048  # what is searched in less time
_BLOCK = 4096  # of a row that is searched as a whole, at a time


def sampling_threshold(
    logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array
) -> jax.Array:
    """See pallas_kernels.sampling_threshold."""
    rows, vocabulary = logits.shape
    if vocabulary >= 1 << 24:
        raise NotImplementedError(f"{vocabulary} logits are more than float32 can count")
    operands = (logits, temperature, top_k, top_p, min_p)
    deep = max(_PART, 8 * triton.cdiv(vocabulary, 8 * _LANES * _PARTS))
    parts = 1 if vocabulary <= _ROOM else triton.cdiv(vocabulary, _LANES * deep)
    shape = {"VOCABULARY": vocabulary, "PARTS": parts, "GREEDY_BELOW": GREEDY_BELOW}
    room = _ROOM // triton.next_power_of_2(parts)
    # What a kernel does not read is an operand nevertheless.
    bounds = candidates = sums = logits
    if parts > 1:
        masses = jax_triton.triton_call(
            *operands,
            kernel=_masses_kernel,
            out_type=jax.ShapeDtypeStruct((rows, 2, parts), jnp.float32),
            grid=(parts, rows),
            name="sampling_masses",
            PART=deep,
            LANES=_LANES,
            **_reading("masses"),
            **shape,
        )
        bounds = jax_triton.triton_call(
            *operands,
            masses,
            kernel=_bounds_kernel,
            out_type=jax.ShapeDtypeStruct((rows, 4), jnp.float32),
            grid=(rows,),
            name="sampling_bounds",
            num_warps=8,
            PARTS_PAD=triton.next_power_of_2(parts),
            SAMPLE=_SAMPLE,
            **shape,
        )
        candidates, sums = jax_triton.triton_call(
            *operands,
            bounds,
            kernel=_candidates_kernel,
            out_type=(
                jax.ShapeDtypeStruct((rows, parts, room), jnp.float32),
                jax.ShapeDtypeStruct((rows, 5, parts), jnp.float32),
            ),
            grid=(parts, rows),
            name="sampling_candidates",
            PART=deep,
            LANES=_LANES,
            **_reading("candidates"),
            ROOM=room,
            **shape,
        )
    threshold: jax.Array = jax_triton.triton_call(
        *operands,
        bounds,
        candidates,
        sums,
        kernel=_threshold_kernel,
        out_type=jax.ShapeDtypeStruct((rows,), jnp.float32),
        grid=(rows,),
        name="sampling_threshold",
        num_warps=16,
        PARTS_PAD=triton.next_power_of_2(parts),
        ROOM=room,
        FEW=_FEW,
        BLOCK=triton.next_power_of_2(vocabulary) if parts == 1 else _BLOCK,
        **shape,
    )
    return threshold


def _reading(kernel: str) -> dict[str, Any]:
    """How a kernel of many programs reads; registers: at most so many a thread, 0 leaves it to the compiler."""
    defaults = {
        "masses": {"together": 8, "stages": 2, "warps": 8, "registers": 0},
        "candidates": {"together": 4, "stages": 3, "warps": 8, "registers": 0},
    }
    config = tuning.config("sampling_threshold", kernel, defaults[kernel])
    return {
        "TOGETHER": config["together"],
        "STAGES": config["stages"],
        "num_warps": config["warps"],
        "backend_options": {"maxnreg": config["registers"]} if config["registers"] else None,
    }


@triton.jit
def _filters(
    row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY: tl.constexpr, GREEDY_BELOW: tl.constexpr
):
    """What filters a row: whether top-k does, and whether anything; log2(e) / temperature; top_k as a float; top_p; how
    far below the highest logit min-p keeps."""
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    drawn = temperature >= GREEDY_BELOW
    counted = (top_k > 0) & (top_k < VOCABULARY) & drawn
    filtered = counted | (((top_p < 1.0) | (min_p > 0.0)) & drawn)
    depth = tl.where(min_p > 0.0, -temperature * tl.log(tl.where(min_p > 0.0, min_p, 1.0)), float("inf"))
    top_k = tl.where(counted, top_k, VOCABULARY).to(tl.float32)
    return counted, filtered, 1.4426950408889634 / tl.where(drawn, temperature, 1.0), top_k, top_p, depth


@triton.jit
def _key(x):
    """int32 in the order of the floats x; both zeros have the same. It is its own inverse, but for a zero's sign."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _float(key):
    """The float of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _mass(x, top, scale):
    """What tokens of logits x weigh beside one of the highest; 0 for -inf, and for what is far below it."""
    return tl.exp2(tl.maximum(x - top, -1e30) * scale)


@triton.jit
def _load(source, start, length, WIDTH: tl.constexpr):
    """WIDTH of the `length` values at source, [1, WIDTH]; -inf beyond them."""
    place = start + tl.arange(0, WIDTH)[None, :]
    return tl.load(source + place, mask=place < length, other=float("-inf"))


@triton.jit
def _weigh(x, rest, length, least, top, scale, WIDTH: tl.constexpr):
    """Of x and the values at `rest`, those that are over -inf and not below `least`: their count, their mass, and the
    lowest. x: [1, WIDTH]. length: of rest."""
    kept = (x >= least) & (x > float("-inf"))
    count = kept.to(tl.float32)
    mass = tl.where(kept, _mass(x, top, scale), 0.0)
    lowest = tl.where(kept, x, float("inf"))
    for start in tl.range(0, length, WIDTH, num_stages=3):
        x = _load(rest, start, length, WIDTH)
        kept = (x >= least) & (x > float("-inf"))
        count += kept.to(tl.float32)
        mass += tl.where(kept, _mass(x, top, scale), 0.0)
        lowest = tl.minimum(lowest, tl.where(kept, x, float("inf")))
    return tl.sum(tl.sum(count, 1), 0), tl.sum(tl.sum(mass, 1), 0), tl.min(tl.min(lowest, 1), 0)


@triton.jit
def _lowest(x, rest, length, least, WIDTH: tl.constexpr):
    """Of x and the values at `rest`, the lowest that is not below `least`."""
    lowest = tl.where(x >= least, x, float("inf"))
    for start in tl.range(0, length, WIDTH, num_stages=3):
        x = _load(rest, start, length, WIDTH)
        lowest = tl.minimum(lowest, tl.where(x >= least, x, float("inf")))
    return tl.min(tl.min(lowest, 1), 0)


@triton.jit
def _search(
    x,
    rest,
    length,
    low,
    over,
    high,
    under,
    target,
    slack,
    top,
    scale,
    MASS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A value such that the mass of what is not below it, or else its count, is `target` or more, by less than
    `slack`; of a mass by less than one token has there, so that the next of the values is the highest that does.

    What is weighed is x [1, WIDTH] and the values at `rest`, `over` in all from `low` on, `under` from `high` on; the
    target is between them. Passes weigh from several values on, close to where the target should be and not so close,
    or around the middle, when that has been of little use.
    """
    weight = _mass(x, top, scale) if MASS else tl.full([1, WIDTH], 1.0, tl.float32)
    low = _key(low)
    high = _key(high)
    probe = tl.arange(0, 4 if WIDTH <= 4096 else 2)  # a pass over many takes longer the more it weighs
    under = tl.to_tensor(under)
    beyond = under
    aside = tl.where(probe % 2 == 0, 1.0, -1.0) * tl.where(probe < 2, 0.015625, 0.125)
    share = (over - target) / tl.maximum(over - under, 1e-30)
    if MASS:
        slack = _mass(_float(low), top, scale)
    while (high - 1 > low) & (over - target >= slack):
        span = (high - low).to(tl.uint32, bitcast=True)  # of two keys it may be more than int32 holds
        place = tl.minimum(tl.maximum(share + aside, 0.0), 1.0) * span.to(tl.float32)
        probes = tl.minimum(tl.maximum(low + place.to(tl.uint32).to(tl.int32, bitcast=True), low + 1), high - 1)
        bound = _float(probes)[:, None]
        totals = beyond + tl.sum(tl.where(x >= bound, weight, 0.0), 1)
        for start in tl.range(0, length, WIDTH, num_stages=3):
            more = _load(rest, start, length, WIDTH)
            weights = _mass(more, top, scale) if MASS else tl.full([1, WIDTH], 1.0, tl.float32)
            totals += tl.sum(tl.where(more >= bound, weights, 0.0), 1)
        enough = totals >= target
        low = tl.max(tl.where(enough, probes, low), 0)
        high = tl.min(tl.where(enough, high, probes), 0)
        over = tl.min(tl.where(enough, totals, over), 0)
        under = tl.max(tl.where(enough, under, totals), 0)
        share = (over - target) / tl.maximum(over - under, 1e-30)
        share = tl.where((high - low).to(tl.uint32, bitcast=True) > span // 8, 0.5, share)
        if MASS:
            slack = _mass(_float(low), top, scale)
    return _float(low)


@triton.jit
def _cut(x, rest, length, top, above, mass, top_k, top_p, depth, scale, WIDTH: tl.constexpr):
    """The threshold among x [1, WIDTH] and the values at `rest`.

    above: the mass of what is more than any of them. mass: of all that top-p sees, if it is more than they are.
    """
    count, found, threshold = _weigh(x, rest, length, top - depth, top, scale, WIDTH)
    high = _float(_key(tl.max(tl.max(x, 1), 0)) + 1)
    for start in tl.range(0, length, WIDTH, num_stages=3):
        more = _load(rest, start, length, WIDTH)
        high = tl.maximum(high, _float(_key(tl.max(tl.max(more, 1), 0)) + 1))
    if top_k < count:
        least = _search(x, rest, length, threshold, count, high, 0.0, top_k, 1.0, top, scale, False, WIDTH)
        _, found, threshold = _weigh(x, rest, length, least, top, scale, WIDTH)
    if top_p < 1.0:
        target = top_p * tl.maximum(mass, above + found)
        least = _search(x, rest, length, threshold, above + found, high, above, target, 0.0, top, scale, True, WIDTH)
        threshold = _lowest(x, rest, length, least, WIDTH)
    return threshold


@triton.jit
def _masses_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    masses_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    LANES: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """A part's highest logit and its mass beside it. A part is lanes from all over the row."""
    part, row = tl.program_id(0), tl.program_id(1)
    counted, filtered, scale, _, _, _ = _filters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY, GREEDY_BELOW
    )
    if filtered & (counted == 0):
        logits_ptr += row.to(tl.int64) * VOCABULARY
        place = (tl.arange(0, TOGETHER) * PARTS + part)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        highest = tl.full([LANES], -3.0e38, tl.float32)
        mass = tl.zeros([LANES], tl.float32)
        for start in tl.range(0, PART, TOGETHER, num_stages=STAGES):
            at = start * (PARTS * LANES) + place
            x = tl.load(logits_ptr + at, mask=at < VOCABULARY, other=float("-inf"))
            before = highest
            highest = tl.maximum(highest, tl.max(x, 0))
            mass = mass * _mass(before, highest, scale) + tl.sum(_mass(x, highest[None, :], scale), 0)
        top = tl.max(highest, 0)
        masses_ptr += row * 2 * PARTS + part
        tl.store(masses_ptr, top)
        tl.store(masses_ptr + PARTS, tl.sum(mass * _mass(highest, top, scale), 0))


@triton.jit
def _bounds_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    masses_ptr,
    bounds_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    SAMPLE: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """Between which values the threshold is, `low` included and `high` not; and the highest logit, unless top-k cuts.

    Ranks are of the sample. A rank that is r in the mean is below r + 5 sqrt(r) + 6 by odds of a million to one.
    """
    row = tl.program_id(0)
    counted, filtered, scale, top_k, top_p, depth = _filters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY, GREEDY_BELOW
    )
    if filtered:
        EACH: tl.constexpr = VOCABULARY / SAMPLE
        place = (tl.arange(0, SAMPLE)[None, :].to(tl.float32) * EACH).to(tl.int32)
        x = tl.load(logits_ptr + row.to(tl.int64) * VOCABULARY + place)
        low = float("-inf")
        high = float("inf")
        top = float("inf")
        rank = top_k / EACH
        margin = 5.0 * tl.sqrt(rank) + 6.0
        part = tl.arange(0, PARTS_PAD)
        highest = tl.full([PARTS_PAD], float("-inf"), tl.float32)
        masses = tl.zeros([PARTS_PAD], tl.float32)
        if counted == 0:
            masses_ptr += row * 2 * PARTS
            highest = tl.load(masses_ptr + part, mask=part < PARTS, other=float("-inf"))
            masses = tl.load(masses_ptr + PARTS + part, mask=part < PARTS, other=0.0)
            top = tl.max(highest, 0)
        least = tl.where(counted, float("-inf"), tl.where(counted, 0.0, top) - depth)
        kept = (x > float("-inf")) & (x >= least)
        seen = tl.max(tl.max(x, 1), 0)
        weight = _mass(x, seen, scale)
        dropped = tl.sum(tl.sum(tl.where(kept, 0.0, weight), 1), 0)
        mass = tl.sum(tl.sum(tl.where(kept, weight, 0.0), 1), 0)
        x = tl.where(kept, x, float("-inf"))
        count, _, lowest = _weigh(x, logits_ptr, 0, float("-inf"), 0.0, 0.0, SAMPLE)
        after = _float(_key(seen) + 1)
        if (counted == 0) & (top_p < 1.0) & (count > 0.0):
            # What the row's mass is to the sample's.
            masses *= tl.exp2(tl.minimum(tl.maximum(highest - seen, -1e30) * scale, 126.0))
            whole = tl.sum(masses, 0) / EACH - dropped
            target = mass - (1.0 - top_p) * whole
            middle = seen
            rank = 0.0
            if target > 0.0:
                middle = _search(x, logits_ptr, 0, lowest, mass, after, 0.0, target, 0.0, seen, scale, True, SAMPLE)
                rank = tl.sum(tl.sum((x >= middle).to(tl.float32), 1), 0)
            # The sum of what is below it varies as that of so many tokens as likely as it.
            below = tl.where(x < middle, _mass(x, middle, 2.0 * scale), 0.0)
            margin = 5.0 * tl.sqrt(tl.sum(tl.sum(below, 1), 0)) + 8.0
            aim = rank - 1.25 * margin
            if aim > 0.0:
                slack = 0.25 * margin
                high = _search(x, logits_ptr, 0, lowest, count, after, 0.0, aim, slack, 0.0, 0.0, False, SAMPLE)
        if (counted != 0) | (top_p < 1.0):
            aim = rank + margin
            if aim < count:
                slack = 0.25 * margin
                low = _search(x, logits_ptr, 0, lowest, count, after, 0.0, aim, slack, 0.0, 0.0, False, SAMPLE)
        else:
            low = high  # of min-p the lowest that it keeps is all that is asked
        bounds_ptr += row * 4
        tl.store(bounds_ptr, low)
        tl.store(bounds_ptr + 1, high)
        tl.store(bounds_ptr + 2, top)


@triton.jit
def _candidates_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    bounds_ptr,
    candidates_ptr,
    sums_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    LANES: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
    ROOM: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """A part's candidates, as far as there is room, and how many there are. Of what min-p keeps, if the highest logit
    is known: its mass, in all, from `low` on, from `high` on; and the lowest."""
    part, row = tl.program_id(0), tl.program_id(1)
    counted, filtered, scale, _, _, depth = _filters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY, GREEDY_BELOW
    )
    if filtered:
        low = tl.load(bounds_ptr + row * 4)
        high = tl.load(bounds_ptr + row * 4 + 1)
        top = tl.load(bounds_ptr + row * 4 + 2)
        least = tl.where(counted, float("-inf"), tl.where(counted, 0.0, top) - depth)
        logits_ptr += row.to(tl.int64) * VOCABULARY
        candidates_ptr += (row * PARTS + part) * ROOM
        place = (tl.arange(0, TOGETHER) * PARTS + part)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        found_before = 0
        mass = tl.zeros([LANES], tl.float32)
        from_low = tl.zeros([LANES], tl.float32)
        from_high = tl.zeros([LANES], tl.float32)
        lowest = tl.full([LANES], float("inf"), tl.float32)
        for start in tl.range(0, PART, TOGETHER, num_stages=STAGES):
            at = start * (PARTS * LANES) + place
            x = tl.load(logits_ptr + at, mask=at < VOCABULARY, other=float("-inf"))
            kept = (x >= least) & (x > float("-inf"))
            weight = tl.where(kept, _mass(x, top, scale), 0.0)
            mass += tl.sum(weight, 0)
            from_low += tl.sum(tl.where(x >= low, weight, 0.0), 0)
            from_high += tl.sum(tl.where(x >= high, weight, 0.0), 0)
            lowest = tl.minimum(lowest, tl.min(tl.where(kept, x, float("inf")), 0))
            found = (kept & (x >= low) & (x < high)).to(tl.int32)
            of_lane = tl.sum(found, 0)
            before = found_before + tl.cumsum(of_lane, 0) - of_lane
            slot = before[None, :] + tl.cumsum(found, 0) - found
            tl.store(candidates_ptr + slot, x, mask=(found > 0) & (slot < ROOM))
            found_before += tl.sum(of_lane, 0)
        sums_ptr += row * 5 * PARTS + part
        tl.store(sums_ptr, found_before)
        tl.store(sums_ptr + PARTS, tl.sum(mass, 0))
        tl.store(sums_ptr + 2 * PARTS, tl.sum(from_low, 0))
        tl.store(sums_ptr + 3 * PARTS, tl.sum(from_high, 0))
        tl.store(sums_ptr + 4 * PARTS, tl.min(lowest, 0))


@triton.jit
def _side_by_side(candidates, sums, PARTS: tl.constexpr, ROOM: tl.constexpr, WIDTH: tl.constexpr):
    """A row's candidates without the room that its parts left, [1, WIDTH]; -inf beyond them."""
    index = tl.arange(0, WIDTH)[None, :]
    place = index
    until = 0
    for part in tl.static_range(PARTS):
        found = tl.load(sums + part).to(tl.int32)
        until += found
        place += tl.where(index >= until, ROOM - found, 0)
    return tl.load(candidates + place, mask=index < until, other=float("-inf"))


@triton.jit
def _as_they_lie(candidates, sums, PARTS: tl.constexpr, PARTS_PAD: tl.constexpr, ROOM: tl.constexpr):
    """A row's candidates, [1, PARTS_PAD * ROOM]; -inf where there are none."""
    part = tl.arange(0, PARTS_PAD)[:, None]
    index = tl.arange(0, ROOM)[None, :]
    found = tl.load(sums + part, mask=part < PARTS, other=0.0).to(tl.int32)
    x = tl.load(candidates + part * ROOM + index, mask=index < found, other=float("-inf"))
    return tl.reshape(x, [1, PARTS_PAD * ROOM], can_reorder=True)


@triton.jit
def _threshold_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    bounds_ptr,
    candidates_ptr,
    sums_ptr,
    threshold_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    ROOM: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """One row."""
    row = tl.program_id(0)
    counted, filtered, scale, top_k, top_p, depth = _filters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY, GREEDY_BELOW
    )
    threshold = float("-inf")
    if filtered:
        logits_ptr += row.to(tl.int64) * VOCABULARY
        settled = False
        if PARTS > 1:
            low = tl.load(bounds_ptr + row * 4)
            top = tl.load(bounds_ptr + row * 4 + 2)
            candidates_ptr += row * (PARTS * ROOM)
            sums_ptr += row * 5 * PARTS
            part = tl.arange(0, PARTS_PAD)
            inside = part < PARTS
            found = tl.load(sums_ptr + part, mask=inside, other=0.0)
            mass = tl.sum(tl.load(sums_ptr + PARTS + part, mask=inside, other=0.0), 0)
            from_low = tl.sum(tl.load(sums_ptr + 2 * PARTS + part, mask=inside, other=0.0), 0)
            from_high = tl.sum(tl.load(sums_ptr + 3 * PARTS + part, mask=inside, other=0.0), 0)
            threshold = tl.min(tl.load(sums_ptr + 4 * PARTS + part, mask=inside, other=float("inf")), 0)
            fullest = tl.max(found, 0)
            found = tl.sum(found, 0)
            reached = tl.where(counted, found >= top_k, from_low >= top_p * mass) | (low == float("-inf"))
            right = reached & (counted | (from_high < top_p * mass)) & (fullest <= ROOM)
            mass = tl.where(counted, 0.0, mass)
            above = tl.where(counted, 0.0, from_high)
            if (counted == 0) & (top_p >= 1.0):
                settled = True
            elif right & (found <= FEW):
                few = _side_by_side(candidates_ptr, sums_ptr, PARTS, ROOM, FEW)
                top = tl.where(counted, tl.max(tl.max(few, 1), 0), top)
                threshold = _cut(few, logits_ptr, 0, top, above, mass, top_k, top_p, depth, scale, FEW)
                settled = True
            elif right:
                many = _as_they_lie(candidates_ptr, sums_ptr, PARTS, PARTS_PAD, ROOM)
                top = tl.where(counted, tl.max(tl.max(many, 1), 0), top)
                threshold = _cut(many, logits_ptr, 0, top, above, mass, top_k, top_p, depth, scale, PARTS_PAD * ROOM)
                settled = True
        if settled == 0:
            REST: tl.constexpr = VOCABULARY - BLOCK if VOCABULARY > BLOCK else 0
            x = _load(logits_ptr, 0, VOCABULARY, BLOCK)
            highest = x
            for start in tl.range(0, REST, BLOCK, num_stages=3):
                highest = tl.maximum(highest, _load(logits_ptr + BLOCK, start, REST, BLOCK))
            top = tl.max(tl.max(highest, 1), 0)
            threshold = _cut(x, logits_ptr + BLOCK, REST, top, 0.0, 0.0, top_k, top_p, depth, scale, BLOCK)
    tl.store(threshold_ptr + row, threshold)
