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

The first and the third kernel are many programs a row, which read at the memory's pace: what they do for each logit is
counted in instructions. The others are one, since a pass of a search waits for all of a program's threads: passes are
few, as each weighs what is not below several values, and their threads meet once in each.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.sampling_threshold import GREEDY_BELOW

_LANES = 1024  # of what is weighed, logits side by side, of which a thread holds four
_PART = 24  # times as many are a part, at the least
_PARTS = 16  # of a row, at the most
_SAMPLE = 4096  # logits from all over a row
_ROOM = 16384  # candidates of a row, over all of its parts
_BLOCK = 4096  # of a row that is searched as a whole, at a time


def sampling_threshold(
    logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array
) -> jax.Array:
    """See pallas_kernels.sampling_threshold."""
    rows, vocabulary = logits.shape
    if vocabulary >= 1 << 24:
        raise NotImplementedError(f"{vocabulary} logits are more than float32 can count")
    operands = (logits, temperature, top_k, top_p, min_p)
    config = {
        kernel: tuning.config("sampling_threshold", kernel, defaults)
        for kernel, defaults in {
            "masses": {"together": 8, "stages": 2, "warps": 8},
            "bounds": {"warps": 4},
            "candidates": {"members": 16, "lanes": 512, "warps": 4},
            "threshold": {"few": 1024, "warps": 8},  # few: what is searched in less time than there is room for
        }.items()
    }
    shape = {"VOCABULARY": vocabulary, "GREEDY_BELOW": GREEDY_BELOW}
    # What a kernel does not read is an operand nevertheless.
    bounds = candidates = sums = logits
    parts, room = 1, _ROOM
    if vocabulary > _ROOM:
        deep = max(_PART, 8 * triton.cdiv(vocabulary, 8 * _LANES * _PARTS))
        weighed = triton.cdiv(vocabulary, _LANES * deep)
        masses = jax_triton.triton_call(
            *operands,
            kernel=_masses_kernel,
            out_type=jax.ShapeDtypeStruct((rows, 2, weighed), jnp.float32),
            grid=(weighed, rows),
            name="sampling_masses",
            num_warps=config["masses"]["warps"],
            PARTS=weighed,
            PART=deep,
            LANES=_LANES,
            TOGETHER=config["masses"]["together"],
            STAGES=config["masses"]["stages"],
            **shape,
        )
        bounds = jax_triton.triton_call(
            *operands,
            masses,
            kernel=_bounds_kernel,
            out_type=jax.ShapeDtypeStruct((rows, 4), jnp.float32),
            grid=(rows,),
            name="sampling_bounds",
            num_warps=config["bounds"]["warps"],
            PARTS=weighed,
            PARTS_PAD=triton.next_power_of_2(weighed),
            SAMPLE=_SAMPLE,
            **shape,
        )
        members, lanes = config["candidates"]["members"], config["candidates"]["lanes"]
        parts = triton.cdiv(vocabulary, members * lanes)
        room = _ROOM // parts
        candidates, sums = jax_triton.triton_call(
            *operands,
            bounds,
            kernel=_candidates_kernel,
            out_type=(
                jax.ShapeDtypeStruct((rows, parts, room), jnp.float32),
                jax.ShapeDtypeStruct((rows, 4, parts), jnp.float32),
            ),
            grid=(parts, rows),
            name="sampling_candidates",
            num_warps=config["candidates"]["warps"],
            PARTS=parts,
            MEMBERS=members,
            LANES=lanes,
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
        num_warps=config["threshold"]["warps"] if parts > 1 else 16,
        PARTS=parts,
        PARTS_PAD=triton.next_power_of_2(parts),
        ROOM=room,
        ROOMS=_ROOM,
        FEW=config["threshold"]["few"],
        BLOCK=triton.next_power_of_2(vocabulary) if parts == 1 else _BLOCK,
        **shape,
    )
    return threshold


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
    """WIDTH of the `length` values at source; -inf beyond them."""
    place = start + tl.arange(0, WIDTH)
    return tl.load(source + place, mask=place < length, other=float("-inf"))


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def _add_three_and_least(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, tl.minimum(d, h)


@triton.jit
def _add_two_and_least(a, b, c, d, e, f):
    return a + d, b + e, tl.minimum(c, f)


@triton.jit
def _weigh(x, rest, length, least, top, scale, WIDTH: tl.constexpr):
    """Of x and the values at `rest`, those that are over -inf and not below `least`: their count, their mass, and the
    lowest. x: [WIDTH]. length: of rest."""
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
    return tl.reduce((count, mass, lowest), 0, _add_two_and_least)


@triton.jit
def _probe(low, high, turn, even: tl.constexpr, share):
    """A key between two others: so far on the way as is `even`, of the values in turn 0 and of the keys in turn 2, or
    else so far as is `share`, of the values."""
    share = tl.where(turn == 0, even, tl.minimum(tl.maximum(share, 0.0), 1.0))
    there = _key(_float(low) * (1.0 - share) + _float(high) * share)
    width = (high - low).to(tl.uint32, bitcast=True)  # it may be more than int32 holds
    key = tl.where(turn == 2, low + (width.to(tl.float32) * even).to(tl.uint32).to(tl.int32, bitcast=True), there)
    return tl.minimum(tl.maximum(key, low + 1), high - 1)


@triton.jit
def _settle(low, over, high, under, probe, total, target):
    """What is known once so much is known to be not below the probe."""
    enough = total >= target
    low = tl.where(enough, tl.maximum(low, probe), low)
    over = tl.where(enough, tl.minimum(over, total), over)
    high = tl.where(enough, high, tl.minimum(high, probe))
    under = tl.where(enough, under, tl.maximum(under, total))
    return low, over, high, under


@triton.jit
def _search(
    x,
    rest,
    length,
    low,
    over,
    high,
    under,
    beyond,
    target,
    slack,
    top,
    scale,
    counting,
    WIDTH: tl.constexpr,
):
    """A value such that the mass of what is not below it, or its count, is `target` or more: a count by less than
    `slack`, a mass by less than one token has there, so that the next of the values is the highest that does.

    What is weighed is x [WIDTH] and the values at `rest`, `over` in all from `low` on, `under` from `high` on; the
    target is between them. beyond: of those sums, what is of no value here. A pass weighs from four values on (two,
    where there is much to weigh), whose sums meet at once, as all threads wait there: the first pass from evenly spaced
    ones, the others from some close to where the target is if the sum grows evenly; behind one that was of little use
    the next one's are evenly spaced in float32's own steps.
    """
    MANY: tl.constexpr = WIDTH > 4096
    weight = tl.where(counting, 1.0, _mass(x, top, scale))
    low = _key(low)
    high = _key(high)
    under = tl.to_tensor(under)
    turn = 0
    while (high - 1 > low) & (over - target >= tl.where(counting, slack, _mass(_float(low), top, scale))):
        width = (high - low).to(tl.uint32, bitcast=True)
        evenly = (over - target) / tl.maximum(over - under, 1e-30)
        a = _probe(low, high, turn, 0.4, evenly - 0.03)
        b = _probe(low, high, turn, 0.6, evenly + 0.03)
        c = _probe(low, high, turn, 0.2, evenly - 0.15)
        d = _probe(low, high, turn, 0.8, evenly + 0.15)
        over_a = tl.where(x >= _float(a), weight, 0.0)
        over_b = tl.where(x >= _float(b), weight, 0.0)
        over_c = over_a
        over_d = over_b
        if not MANY:
            over_c = tl.where(x >= _float(c), weight, 0.0)
            over_d = tl.where(x >= _float(d), weight, 0.0)
        for start in tl.range(0, length, WIDTH, num_stages=3):
            more = _load(rest, start, length, WIDTH)
            weights = tl.where(counting, 1.0, _mass(more, top, scale))
            over_a += tl.where(more >= _float(a), weights, 0.0)
            over_b += tl.where(more >= _float(b), weights, 0.0)
            if not MANY:
                over_c += tl.where(more >= _float(c), weights, 0.0)
                over_d += tl.where(more >= _float(d), weights, 0.0)
        if MANY:
            total_a, total_b = tl.reduce((over_a, over_b), 0, _add_two)
        else:
            total_a, total_b, total_c, total_d = tl.reduce((over_a, over_b, over_c, over_d), 0, _add_four)
            low, over, high, under = _settle(low, over, high, under, c, beyond + total_c, target)
            low, over, high, under = _settle(low, over, high, under, d, beyond + total_d, target)
        low, over, high, under = _settle(low, over, high, under, a, beyond + total_a, target)
        low, over, high, under = _settle(low, over, high, under, b, beyond + total_b, target)
        missed = (high - low).to(tl.uint32, bitcast=True) > width // 4
        turn = tl.where(missed & (turn == 1), 2, 1)
    return _float(low)


@triton.jit
def _cut(x, rest, length, top, above, mass, top_k, top_p, depth, scale, WIDTH: tl.constexpr):
    """The threshold among x [WIDTH] and the values at `rest`; NaN if it is less than any of them.

    above: the mass of what is more than any of them. mass: of all that top-p sees, if it is more than those and they.
    """
    count, found, threshold = _weigh(x, rest, length, top - depth, top, scale, WIDTH)
    highest = x
    for start in tl.range(0, length, WIDTH, num_stages=3):
        highest = tl.maximum(highest, _load(rest, start, length, WIDTH))
    high = _float(_key(tl.max(highest, 0)) + 1)
    for filtering in tl.range(0, 2):  # one search in code for both: it takes seconds to compile
        counting = filtering == 0
        if tl.where(counting, top_k < count, top_p < 1.0):
            over = tl.where(counting, count, above + found)
            under = tl.where(counting, 0.0, above)
            target = tl.where(counting, top_k, top_p * tl.maximum(mass, over))
            if over < target:
                threshold = float("nan")
            else:
                least = _search(
                    x, rest, length, threshold, over, high, under, under, target, 1.0, top, scale, counting, WIDTH
                )
                _, found, threshold = _weigh(x, rest, length, least, top, scale, WIDTH)
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
    """Between which values the threshold is, `low` included and `high` not; the highest logit, and what the row weighs
    beside it, unless top-k cuts.

    Ranks are of the sample. A rank that is r in the mean is below r + 5 sqrt(r) + 6 by odds of a million to one.
    """
    row = tl.program_id(0)
    counted, filtered, scale, top_k, top_p, depth = _filters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY, GREEDY_BELOW
    )
    if filtered:
        EACH: tl.constexpr = VOCABULARY / SAMPLE
        place = (tl.arange(0, SAMPLE).to(tl.float32) * EACH).to(tl.int32)
        x = tl.load(logits_ptr + row.to(tl.int64) * VOCABULARY + place)
        low = float("-inf")
        high = float("inf")
        top = float("inf")
        weighed = 0.0
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
            weighed = tl.sum(masses * _mass(highest, top, scale), 0)
        least = tl.where(counted, float("-inf"), tl.where(counted, 0.0, top) - depth)
        kept = (x > float("-inf")) & (x >= least)
        seen = tl.max(x, 0)
        weight = _mass(x, seen, scale)
        dropped = tl.where(kept, 0.0, weight)
        mass = tl.where(kept, weight, 0.0)
        lowest = tl.where(kept, x, float("inf"))
        dropped, mass, count, lowest = tl.reduce((dropped, mass, kept.to(tl.float32), lowest), 0, _add_three_and_least)
        x = tl.where(kept, x, float("-inf"))
        after = _float(_key(seen) + 1)
        above = after  # from where on the rank is known to be
        known = 0.0
        if (counted == 0) & (top_p < 1.0) & (count > 0.0):
            # What the row's mass is to the sample's.
            masses *= tl.exp2(tl.minimum(tl.maximum(highest - seen, -1e30) * scale, 126.0))
            whole = tl.sum(masses, 0) / EACH - dropped
            rest = (1.0 - top_p) * whole
            middle = seen
            if mass > rest:
                # All that is further below the highest than so many bits weighs no more than the rest.
                bits = tl.maximum(tl.log2(count / tl.maximum(rest, 1e-30)), 0.0)
                least = tl.maximum(lowest, seen - bits / scale)
                middle = _search(
                    x, logits_ptr, 0, least, mass, after, 0.0, 0.0, mass - rest, 0.0, seen, scale, False, SAMPLE
                )
            # The sum of what is below it varies as that of so many tokens as likely as it.
            below = tl.where(x < middle, _mass(x, middle, 2.0 * scale), 0.0)
            rank, varying = tl.reduce(((x >= middle).to(tl.float32), below), 0, _add_two)
            margin = 5.0 * tl.sqrt(varying) + 8.0
            if mass > rest:
                above = middle
                known = rank
            aim = known - 1.25 * margin
            if aim > 0.0:
                slack = 0.25 * margin
                high = _search(x, logits_ptr, 0, above, known, after, 0.0, 0.0, aim, slack, 0.0, 0.0, True, SAMPLE)
            rank = known  # or less than any of the sample's
        if (counted != 0) | (top_p < 1.0):
            aim = rank + margin
            if aim < count:
                slack = 0.25 * margin
                low = _search(x, logits_ptr, 0, lowest, count, above, known, 0.0, aim, slack, 0.0, 0.0, True, SAMPLE)
        else:
            low = high  # of min-p the lowest that it keeps is all that is asked
        bounds_ptr += row * 4
        tl.store(bounds_ptr, low)
        tl.store(bounds_ptr + 1, high)
        tl.store(bounds_ptr + 2, top)
        tl.store(bounds_ptr + 3, weighed)


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
    MEMBERS: tl.constexpr,
    LANES: tl.constexpr,
    ROOM: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """A part's candidates, as far as there is room, and how many there are. Of a row that top-k does not cut, also what
    weighs what is not below `high`; and where min-p cuts too, all that it keeps, and the lowest of that."""
    part, row = tl.program_id(0), tl.program_id(1)
    counted, filtered, scale, _, top_p, depth = _filters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, VOCABULARY, GREEDY_BELOW
    )
    if filtered:
        LEAST: tl.constexpr = -3.4028234663852886e38  # -inf is none, whatever `low` is
        low = tl.load(bounds_ptr + row * 4)
        high = tl.load(bounds_ptr + row * 4 + 1)
        top = tl.load(bounds_ptr + row * 4 + 2)
        logits_ptr += row.to(tl.int64) * VOCABULARY + part * LANES
        sums_ptr += row * 4 * PARTS + part
        member = tl.arange(0, MEMBERS)[:, None]
        lane = tl.arange(0, LANES)
        place = member * (PARTS * LANES) + lane[None, :]
        x = tl.load(logits_ptr + place, mask=place < VOCABULARY - part * LANES, other=float("-inf"))
        if counted == 0:
            if depth < float("inf"):
                x = tl.where(x >= tl.maximum(top - depth, LEAST), x, float("-inf"))
                lowest = tl.min(tl.where(x > float("-inf"), x, float("inf")), 0)
                tl.store(sums_ptr + 2 * PARTS, tl.sum(tl.sum(_mass(x, top, scale), 0), 0))
                tl.store(sums_ptr + 3 * PARTS, tl.min(lowest, 0))
            if top_p < 1.0:
                above = tl.sum(tl.where(x >= high, _mass(x, top, scale), 0.0), 0)
                tl.store(sums_ptr + PARTS, tl.sum(above, 0))
                x = tl.where(x < high, x, float("-inf"))
        if (counted != 0) | (top_p < 1.0):
            # Of each lane which members are candidates, as bits, and how many, above those.
            found = tl.sum(tl.where(x >= tl.maximum(low, LEAST), (1 << member) + (1 << MEMBERS), 0), 0)
            count = found >> MEMBERS
            until = tl.cumsum(count, 0)
            slot = until - count
            found &= (1 << MEMBERS) - 1
            candidates_ptr += (row * PARTS + part) * ROOM
            for _turn in tl.range(0, tl.max(count, 0)):
                alone = (found & -found).to(tl.float32).to(tl.int32, bitcast=True)  # the lowest bit: its exponent
                at = ((alone >> 23) - 127) * (PARTS * LANES) + lane
                value = tl.load(logits_ptr + at, mask=found != 0)
                tl.store(candidates_ptr + slot, value, mask=(found != 0) & (slot < ROOM))
                found &= found - 1
                slot += 1
            tl.store(sums_ptr, tl.max(until, 0).to(tl.float32))


@triton.jit
def _side_by_side(candidates, sums, PARTS: tl.constexpr, ROOM: tl.constexpr, WIDTH: tl.constexpr):
    """A row's candidates without the room that its parts left, [WIDTH]; -inf beyond them."""
    index = tl.arange(0, WIDTH)
    place = index
    until = 0
    for part in tl.static_range(PARTS):
        found = tl.load(sums + part).to(tl.int32)
        until += found
        place += tl.where(index >= until, ROOM - found, 0)
    return tl.load(candidates + place, mask=index < until, other=float("-inf"))


@triton.jit
def _as_they_lie(candidates, sums, PARTS: tl.constexpr, ROOM: tl.constexpr, WIDTH: tl.constexpr):
    """A row's candidates, [WIDTH]; -inf where there are none."""
    index = tl.arange(0, WIDTH)
    part = index // ROOM
    found = tl.load(sums + part, mask=part < PARTS, other=0.0).to(tl.int32)
    return tl.load(candidates + index, mask=index - part * ROOM < found, other=float("-inf"))


@triton.jit
def _cut_candidates(x, anywhere, top, above, mass, counted, top_k, top_p, depth, scale, WIDTH: tl.constexpr):
    """The threshold among a row's candidates x [WIDTH]. anywhere: a pointer that nothing is read from."""
    top = tl.where(counted, tl.max(x, 0), top)
    return _cut(x, anywhere, 0, top, above, mass, top_k, top_p, depth, scale, WIDTH)


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
    ROOMS: tl.constexpr,
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
            sums_ptr += row * 4 * PARTS
            part = tl.arange(0, PARTS_PAD)
            inside = part < PARTS
            settled = (counted == 0) & (top_p >= 1.0)
            if settled:
                lowest = tl.load(sums_ptr + 3 * PARTS + part, mask=inside, other=float("inf"))
                threshold = tl.min(lowest, 0)
            else:
                found = tl.load(sums_ptr + part, mask=inside, other=0.0)
                fullest = tl.max(found, 0)
                found = tl.sum(found, 0)
                mass = 0.0
                above = 0.0
                right = (found >= top_k) | (low == float("-inf"))
                if counted == 0:
                    above = tl.sum(tl.load(sums_ptr + PARTS + part, mask=inside, other=0.0), 0)
                    mass = tl.load(bounds_ptr + row * 4 + 3)
                    if depth < float("inf"):
                        mass = tl.sum(tl.load(sums_ptr + 2 * PARTS + part, mask=inside, other=0.0), 0)
                    right = above < top_p * mass
                settled = right & (fullest <= ROOM)
                if settled:
                    if found <= FEW:
                        few = _side_by_side(candidates_ptr, sums_ptr, PARTS, ROOM, FEW)
                        threshold = _cut_candidates(
                            few, logits_ptr, top, above, mass, counted, top_k, top_p, depth, scale, FEW
                        )
                    else:
                        many = _as_they_lie(candidates_ptr, sums_ptr, PARTS, ROOM, ROOMS)
                        threshold = _cut_candidates(
                            many, logits_ptr, top, above, mass, counted, top_k, top_p, depth, scale, ROOMS
                        )
                    settled = threshold == threshold
        if settled == 0:
            REST: tl.constexpr = VOCABULARY - BLOCK if VOCABULARY > BLOCK else 0
            x = _load(logits_ptr, 0, VOCABULARY, BLOCK)
            highest = x
            for start in tl.range(0, REST, BLOCK, num_stages=3):
                highest = tl.maximum(highest, _load(logits_ptr + BLOCK, start, REST, BLOCK))
            top = tl.max(highest, 0)
            threshold = _cut(x, logits_ptr + BLOCK, REST, top, 0.0, 0.0, top_k, top_p, depth, scale, BLOCK)
    tl.store(threshold_ptr + row, threshold)
