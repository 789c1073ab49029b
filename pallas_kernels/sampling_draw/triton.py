# mypy: disallow-untyped-defs=False
"""sampling_draw in Triton: many programs a row race its groups, reading the logits once; one ends the race."""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.sampling_draw import LANES, MEMBERS, num_parts
from pallas_kernels.sampling_threshold import GREEDY_BELOW


def sampling_draw(
    logits: jax.Array,
    lowest: jax.Array,
    temperature: jax.Array,
    seed: jax.Array,
    sample_index: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """See pallas_kernels.sampling_draw."""
    rows, vocabulary = logits.shape
    if vocabulary >= 1 << 24:
        raise NotImplementedError(f"float32 cannot name each of {vocabulary} tokens")
    operands = (logits, lowest, temperature, seed, sample_index, position)
    parts = num_parts(vocabulary)
    shape = {"VOCABULARY": vocabulary, "PARTS": parts, "LANES": LANES, "GREEDY_BELOW": GREEDY_BELOW}
    # registers: at most so many a thread, for more programs on a multiprocessor at once; 0 leaves it to the compiler.
    config = tuning.config("sampling_draw", "groups", {"together": 8, "stages": 2, "warps": 8, "registers": 0})
    groups = jax_triton.triton_call(
        *operands,
        kernel=_groups_kernel,
        out_type=jax.ShapeDtypeStruct((rows, 2, parts), jnp.float32),
        grid=(parts, rows),
        name="sampling_groups",
        num_warps=config["warps"],
        backend_options={"maxnreg": config["registers"]} if config["registers"] else None,
        MEMBERS=min(MEMBERS, 8 * triton.cdiv(vocabulary, 8 * LANES * parts)),
        TOGETHER=config["together"],
        STAGES=config["stages"],
        **shape,
    )
    tokens: jax.Array = jax_triton.triton_call(
        *operands,
        groups,
        kernel=_token_kernel,
        out_type=jax.ShapeDtypeStruct((rows,), jnp.int32),
        grid=(rows,),
        name="sampling_token",
        num_warps=1,
        PARTS_PAD=triton.next_power_of_2(parts),
        MEMBERS_PAD=triton.next_power_of_2(MEMBERS),
        **shape,
    )
    return tokens


@triton.jit
def _rounds(x, y, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr):
    """Four of threefry's rounds."""
    x += y
    y = x ^ ((y << a) | (y >> (32 - a)))
    x += y
    y = x ^ ((y << b) | (y >> (32 - b)))
    x += y
    y = x ^ ((y << c) | (y >> (32 - c)))
    x += y
    y = x ^ ((y << d) | (y >> (32 - d)))
    return x, y


@triton.jit
def _threefry(key, other, count):
    """threefry2x32 of 20 rounds: two words for each uint32 `count`, whose high word is 0."""
    third = key ^ other ^ tl.full([], 0x1BD11BDA, tl.uint32)
    y = count + other
    x, y = _rounds(key + tl.zeros_like(y), y, 13, 15, 26, 6)
    x, y = _rounds(x + other, y + third + tl.full([], 1, tl.uint32), 17, 29, 16, 24)
    x, y = _rounds(x + third, y + key + tl.full([], 2, tl.uint32), 13, 15, 26, 6)
    x, y = _rounds(x + key, y + other + tl.full([], 3, tl.uint32), 17, 29, 16, 24)
    x, y = _rounds(x + other, y + third + tl.full([], 4, tl.uint32), 13, 15, 26, 6)
    return x + third, y + key + tl.full([], 5, tl.uint32)


@triton.jit
def _row_key(row, seed_ptr, sample_index_ptr, position_ptr):
    """The key of a row's draw."""
    key = tl.load(seed_ptr + 2 * row)
    other = tl.load(seed_ptr + 2 * row + 1)
    key, other = _threefry(key, other, tl.load(sample_index_ptr + row).to(tl.uint32, bitcast=True))
    return _threefry(key, other, tl.load(position_ptr + row).to(tl.uint32, bitcast=True))


@triton.jit
def _log2_exponential(key, other, count):
    """Binary logarithms of numbers that are exponentially distributed."""
    x, y = _threefry(key, other, count)
    # Small u decide the race; a uint32 turned into a float keeps 24 bits of them at every magnitude.
    u = tl.minimum(((x ^ y).to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    small = u * (1.0 + u * (0.5 + u * (0.33333333 + u * (0.25 + u * (0.2 + u * 0.16666667)))))
    return tl.log2(tl.where(u < 0.0625, small, -tl.log(1.0 - u)))


@triton.jit
def _groups_kernel(
    logits_ptr,
    lowest_ptr,
    temperature_ptr,
    seed_ptr,
    sample_index_ptr,
    position_ptr,
    groups_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    LANES: tl.constexpr,
    MEMBERS: tl.constexpr,
    TOGETHER: tl.constexpr,
    STAGES: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """The first of a part's groups, how far it came, and its lane. Of a greedy row the highest logit, and its token."""
    part, row = tl.program_id(0), tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    logits_ptr += row.to(tl.int64) * VOCABULARY
    groups_ptr += row * 2 * PARTS + part
    lane = tl.arange(0, LANES)
    place = (tl.arange(0, TOGETHER) * PARTS + part)[:, None] * LANES + lane[None, :]
    highest = tl.full([LANES], -1e30, tl.float32)
    if temperature < GREEDY_BELOW:
        token = tl.full([LANES], VOCABULARY, tl.int32)
        highest = tl.full([LANES], float("-inf"), tl.float32)
        for start in tl.range(0, MEMBERS, TOGETHER, num_stages=STAGES):
            at = start * (PARTS * LANES) + place
            x = tl.load(logits_ptr + at, mask=at < VOCABULARY, other=float("-inf"))
            here = tl.max(x, 0)
            first = tl.min(tl.where((x == here[None, :]) & (at < VOCABULARY), at, VOCABULARY), 0)
            token = tl.where(here > highest, first, tl.where(here == highest, tl.minimum(token, first), token))
            highest = tl.maximum(highest, here)
        best = tl.max(highest, 0)
        tl.store(groups_ptr, best)
        tl.store(groups_ptr + PARTS, tl.min(tl.where(highest == best, token, VOCABULARY), 0).to(tl.float32))
    else:
        scale = 1.4426950408889634 / temperature
        lowest = tl.load(lowest_ptr + row)
        mass = tl.zeros([LANES], tl.float32)
        for start in tl.range(0, MEMBERS, TOGETHER, num_stages=STAGES):
            at = start * (PARTS * LANES) + place
            x = tl.load(logits_ptr + at, mask=at < VOCABULARY, other=float("-inf"))
            x = tl.where(x >= lowest, x, float("-inf"))
            before = highest
            highest = tl.maximum(highest, tl.max(x, 0))
            mass *= tl.exp2((before - highest) * scale)
            mass += tl.sum(tl.exp2((x - highest[None, :]) * scale), 0)
        key, other = _row_key(row, seed_ptr, sample_index_ptr, position_ptr)
        reached = tl.where(mass > 0.0, highest * scale + tl.log2(tl.where(mass > 0.0, mass, 1.0)), float("-inf"))
        reached -= _log2_exponential(key, other, (part * LANES + lane).to(tl.uint32))
        best = tl.max(reached, 0)
        tl.store(groups_ptr, best)
        tl.store(groups_ptr + PARTS, tl.min(tl.where(reached == best, lane, LANES - 1), 0).to(tl.float32))


@triton.jit
def _token_kernel(
    logits_ptr,
    lowest_ptr,
    temperature_ptr,
    seed_ptr,
    sample_index_ptr,
    position_ptr,
    groups_ptr,
    tokens_ptr,
    VOCABULARY: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PAD: tl.constexpr,
    LANES: tl.constexpr,
    MEMBERS_PAD: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
):
    """One row: which part's group was first, and which of its members is."""
    row = tl.program_id(0)
    temperature = tl.load(temperature_ptr + row)
    part = tl.arange(0, PARTS_PAD)
    groups_ptr += row * 2 * PARTS
    reached = tl.load(groups_ptr + part, mask=part < PARTS, other=float("-inf"))
    named = tl.load(groups_ptr + PARTS + part, mask=part < PARTS, other=VOCABULARY).to(tl.int32)
    best = tl.max(reached, 0)
    if temperature < GREEDY_BELOW:
        token = tl.min(tl.where((reached == best) & (named < VOCABULARY), named, VOCABULARY - 1), 0)  # of NaNs the last
    else:
        winner = tl.min(tl.where(reached == best, part, PARTS - 1), 0)
        lane = tl.sum(tl.where(part == winner, named, 0), 0)
        scale = 1.4426950408889634 / temperature
        lowest = tl.load(lowest_ptr + row)
        key, other = _row_key(row, seed_ptr, sample_index_ptr, position_ptr)
        key, other = _threefry(key, other, (winner * LANES + lane).to(tl.uint32) | tl.full([], 1 << 31, tl.uint32))
        member = tl.arange(0, MEMBERS_PAD)
        place = (member * PARTS + winner) * LANES + lane
        inside = place < VOCABULARY
        x = tl.load(logits_ptr + row.to(tl.int64) * VOCABULARY + place, mask=inside, other=float("-inf"))
        came = tl.where(inside & (x >= lowest), x, float("-inf")) * scale
        came -= _log2_exponential(key, other, member.to(tl.uint32))
        token = tl.min(tl.where(came == tl.max(came, 0), place, VOCABULARY - 1), 0)
    tl.store(tokens_ptr + row, token)
