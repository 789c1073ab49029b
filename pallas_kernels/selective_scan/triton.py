# mypy: disallow-untyped-defs=False, disable-error-code=assignment
"""selective_scan in Triton: a program per row and block of channels, its states in registers from token to token.

Nothing is sequential but one multiply-add a token: each turn loads the operands of `ahead` tokens for the next.

What it costs at least, of Mamba-2.8B (5120 channels, states of 16, x in bfloat16 and dt in float32): a decode reads and
writes each row's state, 0.66 MB in all; at 4.3 TB/s that is 0.15 us for 1 row, 9.8 us for 64 and 39 us for 256. An
extend needs one exponential per token, channel and state: 8192 tokens take 0.18 ms of an H200's 132 x 16 a cycle, in
which their 0.34 GB of x, dt and y take 0.08 ms.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.recurrent import entries

_MAX_SIZE = 256


def selective_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None,
    states: jax.Array,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
    *,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.selective_scan."""
    tokens, channels = x.shape
    size = A.shape[1]
    if size > _MAX_SIZE:
        raise NotImplementedError(f"a state of {size} is over {_MAX_SIZE}")
    entry = entries(index, fresh)
    if not decode:
        # The padding tokens are one row more, of no entry: it yields their zeros.
        query_start = jnp.concatenate([query_start, jnp.full((1,), tokens, jnp.int32)])
    size_pad = triton.next_power_of_2(size)
    # One warp, within which neither the sums nor y have to pass through shared memory. In an extend a thread has four
    # places of two channels' states, which share what is loaded of B and C.
    elements = 512 if decode else 256
    defaults = {"channels": max(1, elements // size_pad), "warps": 1, "ahead": 1 if decode else 8}
    config = tuning.config("selective_scan", "decode" if decode else "extend", defaults, size=size)
    states_ref = jax.new_ref(states)
    y = jax_triton.triton_call(
        states_ref,
        x,
        dt,
        A.astype(jnp.float32),
        # In float32 they are as few bytes as to be no matter, and no thread has to convert them.
        B.astype(jnp.float32),
        C.astype(jnp.float32),
        A if D is None else D,
        entry,
        query_start,
        kernel=_selective_scan_kernel,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(-(-channels // config["channels"]), entry.shape[0] if decode else entry.shape[0] + 1),
        name="selective_scan",
        num_warps=config["warps"],
        DECODE=decode,
        SKIP=D is not None,
        CHANNELS=channels,
        SIZE=size,
        SIZE_PAD=size_pad,
        BLOCK=config["channels"],
        AHEAD=config["ahead"],
    )
    return y, jax.freeze(states_ref)


@triton.jit
def _load(
    x_ptrs,
    dt_ptrs,
    B_ptrs,
    C_ptrs,
    inside,
    held,
    done,
    count,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """x, dt, B and C of the row's tokens done : done + AHEAD, a tuple of AHEAD such; zeros behind its `count`."""
    operands = ()
    for i in tl.static_range(AHEAD):
        token = done + i
        x = tl.load(x_ptrs + token * CHANNELS, mask=inside & (token < count), other=0.0)
        dt = tl.load(dt_ptrs + token * CHANNELS, mask=inside & (token < count), other=0.0)
        B = tl.load(B_ptrs + token * SIZE, mask=held & (token < count), other=0.0)
        C = tl.load(C_ptrs + token * SIZE, mask=held & (token < count), other=0.0)
        operands += ((x, dt, B, C),)
    return operands


@triton.jit
def _selective_scan_kernel(
    states_ptr,
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    entry_ptr,
    start_ptr,
    y_ptr,
    DECODE: tl.constexpr,
    SKIP: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """BLOCK channels of a row. x, dt, y: [T, CHANNELS]; B, C: [T, SIZE]; A: [CHANNELS, SIZE]."""
    row = tl.program_id(1)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    place = tl.arange(0, SIZE_PAD)
    held = place < SIZE
    if DECODE:
        begin, count = row.to(tl.int64), 1
    else:
        begin = tl.load(start_ptr + row)
        count = tl.load(start_ptr + row + 1) - begin
        begin = begin.to(tl.int64)
        if row == tl.num_programs(1) - 1:  # the padding
            for done in range(count):
                y_ptrs = y_ptr + (begin + done) * CHANNELS + channel
                tl.store(y_ptrs, tl.zeros([BLOCK], y_ptr.dtype.element_ty), mask=inside)
            return
        if count == 0:
            return
    y_ptrs = y_ptr + begin * CHANNELS + channel
    x_ptrs = x_ptr + begin * CHANNELS + channel
    dt_ptrs = dt_ptr + begin * CHANNELS + channel
    B_ptrs = B_ptr + begin * SIZE + place
    C_ptrs = C_ptr + begin * SIZE + place
    operands = _load(x_ptrs, dt_ptrs, B_ptrs, C_ptrs, inside, held, 0, count, CHANNELS, SIZE, AHEAD)
    entry = tl.load(entry_ptr + row)
    own = tl.where(entry < 0, ~entry, entry).to(tl.int64)
    mask = inside[:, None] & held[None, :]
    offsets = channel[:, None] * SIZE + place[None, :]
    state_ptrs = states_ptr + own * (CHANNELS * SIZE) + offsets
    state = tl.load(state_ptrs, mask=mask & (entry >= 0), other=0.0)
    A = tl.load(A_ptr + offsets, mask=mask, other=0.0) * 1.4426950408889634
    if SKIP:
        D = tl.load(D_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    for done in range(0, count, AHEAD):
        following = operands
        if not DECODE:
            following = _load(x_ptrs, dt_ptrs, B_ptrs, C_ptrs, inside, held, done + AHEAD, count, CHANNELS, SIZE, AHEAD)
        for i in tl.static_range(AHEAD):
            x, dt, B, C = operands[i]
            x = x.to(tl.float32)
            dt = dt.to(tl.float32)
            # Behind the row dt is zero and the state stays.
            state = tl.exp2(dt[:, None] * A) * state + (dt * x)[:, None] * B[None, :]
            y = tl.sum(state * C[None, :], axis=1)
            if SKIP:
                y += D * x
            tl.store(y_ptrs + (done + i) * CHANNELS, y.to(y_ptr.dtype.element_ty), mask=inside & (done + i < count))
        operands = following
    tl.store(state_ptrs, state, mask=mask)
