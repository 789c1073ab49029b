# mypy: disallow-untyped-defs=False
"""ssd in Triton: decode in one kernel, extend in the chunked form of Dao and Gu 2024, in two.

The first kernel of an extend goes through each row's chunks in order, its states in registers, and leaves the state
before every chunk in memory; with these the second computes all chunks at once: a quadratic form over the chunk's own
tokens, whose scores the heads of a group share, and the contribution of the state.

What it costs at least, of Mamba2-2.7B (80 heads of 64, states of 128, bfloat16): a decode reads and writes each row's
state, 5.2 MB in all; at 4.3 TB/s that is 1.2 us for 1 row, 78 us for 64 and 312 us for 256. An extend of 8192 tokens
in chunks of 128 reads x twice, writes y, and writes and reads the states between chunks, 0.42 GB: 0.10 ms; its
38 GFLOP, masked halves included, take 0.05 ms at 790 TFLOP/s.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.recurrent import entries, tiles

_MAX_DIM, _MAX_SIZE = 256, 256


def ssd(
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
    """See pallas_kernels.ssd."""
    dim, size = states.shape[2:]
    if size > _MAX_SIZE or dim > _MAX_DIM:
        raise NotImplementedError(f"heads of {dim} with states of {size} are over {_MAX_DIM} and {_MAX_SIZE}")
    A = A.astype(jnp.float32)
    D, skip = (A, False) if D is None else (D, True)
    operands = (x, dt, A, B, C, D)
    if decode:
        return _decode(operands, skip, states, entries(index, fresh))
    if not x.dtype == B.dtype == C.dtype or x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"x {x.dtype}, B {B.dtype}, C {C.dtype}: must be one float type")
    return _extend(operands, skip, states, index, query_start, fresh)


def _shape(x: jax.Array, B: jax.Array, dims: int) -> dict[str, int]:
    groups, size = B.shape[1:]
    return {
        "HEADS": x.shape[1],
        "GROUPS": groups,
        "DIM": x.shape[2],
        "SIZE": size,
        "SIZE_PAD": max(16, triton.next_power_of_2(size)),
        "DIMS": dims,
    }


def _decode(
    operands: tuple[jax.Array, ...], skip: bool, states: jax.Array, entry: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, _, _, B, *_ = operands
    dim, size = states.shape[2:]
    dims = min(triton.next_power_of_2(dim), max(16, 4096 // triton.next_power_of_2(size)))
    config = tuning.config("ssd", "decode", {"dims": dims, "warps": 4}, dim=dim, size=size)
    states_ref = jax.new_ref(states)
    y = jax_triton.triton_call(
        states_ref,
        *operands,
        entry,
        kernel=_decode_kernel,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(-(-dim // config["dims"]), x.shape[1], x.shape[0]),
        name="ssd_decode",
        num_warps=config["warps"],
        SKIP=skip,
        **_shape(x, B, config["dims"]),
    )
    return y, jax.freeze(states_ref)


def _extend(
    operands: tuple[jax.Array, ...],
    skip: bool,
    states: jax.Array,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, B = operands[0], operands[3]
    tokens, heads, dim = x.shape
    size = states.shape[3]
    dim_pad = max(16, triton.next_power_of_2(dim))
    # tokens: of a chunk; heads: at most, of one program; dims: of a head's values; pass_*: of the first kernel.
    defaults = {"tokens": 128, "heads": 8, "dims": min(64, dim_pad), "warps": 8, "stages": 2}
    defaults |= {"pass_dims": min(32, dim_pad), "pass_warps": 4, "pass_stages": 3}
    if x.dtype.itemsize == 4:
        defaults |= {"tokens": 32 if size <= 64 else 16, "dims": 16, "warps": 4, "pass_dims": 16, "pass_stages": 2}
    elif size > 128:
        defaults |= {"tokens": 64, "warps": 4}
    config = tuning.config("ssd", "extend", defaults, dim=dim, size=size, bytes=x.dtype.itemsize)
    work, first = tiles(index, query_start, fresh, tokens, config["tokens"])
    precision = "tf32x3" if x.dtype == jnp.float32 else "tf32"  # the first's error is near float32's own
    states_ref = jax.new_ref(states)
    passed, y = jax_triton.triton_call(
        states_ref,
        *operands,
        entries(index, fresh),
        query_start,
        first,
        kernel=_pass_kernel,
        out_type=(
            jax.ShapeDtypeStruct((work.shape[0], heads, dim, size), x.dtype),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
        ),
        grid=(-(-dim // config["pass_dims"]), heads, index.shape[0]),
        name="ssd_pass",
        num_warps=config["pass_warps"],
        num_stages=config["pass_stages"],
        SKIP=skip,
        TOKENS=config["tokens"],
        PRECISION=precision,
        **_shape(x, B, config["pass_dims"]),
    )
    shared = next(n for n in range(config["heads"], 0, -1) if heads // B.shape[1] % n == 0)
    y_ref = jax.new_ref(y)
    jax_triton.triton_call(
        y_ref,
        *operands,
        passed,
        work,
        kernel=_chunk_kernel,
        out_type=(),
        grid=(-(-dim // config["dims"]), heads // shared, work.shape[0]),
        name="ssd_chunk",
        num_warps=config["warps"],
        num_stages=config["stages"],
        SKIP=skip,
        TOKENS=config["tokens"],
        SHARED=shared,
        PRECISION=precision,
        **_shape(x, B, config["dims"]),
    )
    return jax.freeze(y_ref), jax.freeze(states_ref)


@triton.jit
def _step(
    state_ptrs,
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    y_ptr,
    token,
    head,
    entry,
    value,
    place,
    SKIP: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The recurrence for a row of one token: values [DIMS] of a head, with their states [DIMS, SIZE_PAD]."""
    mask = (value < DIM)[:, None] & (place < SIZE)[None, :]
    state = tl.load(state_ptrs, mask=mask & (entry >= 0), other=0.0)
    dt = tl.load(dt_ptr + token * HEADS + head).to(tl.float32)
    A = tl.load(A_ptr + head)
    offset = (token * GROUPS + head // (HEADS // GROUPS)) * SIZE
    B = tl.load(B_ptr + offset + place, mask=place < SIZE, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + offset + place, mask=place < SIZE, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + (token * HEADS + head) * DIM + value, mask=value < DIM, other=0.0).to(tl.float32)
    state = tl.exp(dt * A) * state + (dt * x)[:, None] * B[None, :]
    tl.store(state_ptrs, state, mask=mask)
    y = tl.sum(state * C[None, :], axis=1)
    if SKIP:
        y += tl.load(D_ptr + head).to(tl.float32) * x
    tl.store(y_ptr + (token * HEADS + head) * DIM + value, y.to(y_ptr.dtype.element_ty), mask=value < DIM)


@triton.jit
def _decode_kernel(
    states_ptr,
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    entry_ptr,
    y_ptr,
    SKIP: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    DIMS: tl.constexpr,
):
    """DIMS values of a row's head. states: [N, HEADS, DIM, SIZE]; x, y: [R, HEADS, DIM]; B, C: [R, GROUPS, SIZE]."""
    head = tl.program_id(1)
    row = tl.program_id(2)
    value = tl.program_id(0) * DIMS + tl.arange(0, DIMS)
    place = tl.arange(0, SIZE_PAD)
    entry = tl.load(entry_ptr + row)
    own = tl.where(entry < 0, ~entry, entry).to(tl.int64)
    state_ptrs = states_ptr + ((own * HEADS + head) * DIM + value)[:, None] * SIZE + place[None, :]
    _step(
        state_ptrs,
        x_ptr,
        dt_ptr,
        A_ptr,
        B_ptr,
        C_ptr,
        D_ptr,
        y_ptr,
        row,
        head,
        entry,
        value,
        place,
        SKIP,
        HEADS,
        GROUPS,
        DIM,
        SIZE,
    )


@triton.jit
def _pass_kernel(
    states_ptr,
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    entry_ptr,
    start_ptr,
    first_ptr,
    passed_ptr,
    y_ptr,
    SKIP: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    DIMS: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The states of DIMS values of a row's head from chunk to chunk. passed: [chunks, HEADS, DIM, SIZE], those before.

    A chunk at the beginning of a fresh row has none before it: nothing is passed. A row of a single token, as a step
    mostly has many beside its prefills, is finished here.
    """
    head = tl.program_id(1)
    row = tl.program_id(2)
    begin = tl.load(start_ptr + row)
    count = tl.load(start_ptr + row + 1) - begin
    if count == 0:
        return
    chunk = tl.load(first_ptr + row)
    entry = tl.load(entry_ptr + row)
    own = tl.where(entry < 0, ~entry, entry).to(tl.int64)
    value = tl.program_id(0) * DIMS + tl.arange(0, DIMS)
    place = tl.arange(0, SIZE_PAD)
    offsets = value[:, None] * SIZE + place[None, :]
    state_ptrs = states_ptr + (own * HEADS + head) * (DIM * SIZE) + offsets
    if count == 1:
        _step(
            state_ptrs,
            x_ptr,
            dt_ptr,
            A_ptr,
            B_ptr,
            C_ptr,
            D_ptr,
            y_ptr,
            begin,
            head,
            entry,
            value,
            place,
            SKIP,
            HEADS,
            GROUPS,
            DIM,
            SIZE,
        )
        return
    token = tl.arange(0, TOKENS)
    mask = (value < DIM)[:, None] & (place < SIZE)[None, :]
    state = tl.load(state_ptrs, mask=mask & (entry >= 0), other=0.0)
    A = tl.load(A_ptr + head) * 1.4426950408889634
    begin = begin.to(tl.int64)
    x_ptrs = x_ptr + ((begin + token) * HEADS + head)[:, None] * DIM + value[None, :]
    dt_ptrs = dt_ptr + (begin + token) * HEADS + head
    B_ptrs = B_ptr + ((begin + token) * GROUPS + head // (HEADS // GROUPS))[:, None] * SIZE + place[None, :]
    passed_ptrs = passed_ptr + (chunk.to(tl.int64) * HEADS + head) * (DIM * SIZE) + offsets
    for done in range(0, count, TOKENS):
        tl.store(passed_ptrs, state.to(passed_ptr.dtype.element_ty), mask=mask & ((done > 0) | (entry >= 0)))
        inside = token < count - done
        dt = tl.load(dt_ptrs, mask=inside, other=0.0).to(tl.float32)
        following = (token + 1 < count - done) & (token + 1 < TOKENS)
        next_dt = tl.load(dt_ptrs + HEADS, mask=following, other=0.0).to(tl.float32)
        x = tl.load(x_ptrs, mask=inside[:, None] & (value < DIM)[None, :], other=0.0)
        B = tl.load(B_ptrs, mask=inside[:, None] & (place < SIZE)[None, :], other=0.0)
        # What decays a token's contribution, summed from the chunk's end: a difference of sums from its beginning
        # would lose the digits of the latest, which count most.
        weight = dt * tl.exp2(tl.cumsum(next_dt * A, axis=0, reverse=True))
        x = (x.to(tl.float32) * weight[:, None]).to(B.dtype)
        state = tl.dot(tl.trans(x), B, tl.exp2(tl.sum(dt * A, axis=0)) * state, input_precision=PRECISION)
        x_ptrs += TOKENS * HEADS * DIM
        dt_ptrs += TOKENS * HEADS
        B_ptrs += TOKENS * GROUPS * SIZE
        passed_ptrs += HEADS * DIM * SIZE
    tl.store(state_ptrs, state, mask=mask)


@triton.jit
def _chunk_kernel(
    y_ptr,
    x_ptr,
    dt_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    passed_ptr,
    work_ptr,
    SKIP: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    DIMS: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """DIMS values of SHARED heads of one group, of one chunk. x, y: [T, HEADS, DIM]; C: [T, GROUPS, SIZE]."""
    first = tl.program_id(1) * SHARED
    chunk = tl.program_id(2)
    begin = tl.load(work_ptr + chunk * 5).to(tl.int64)
    held = tl.load(work_ptr + chunk * 5 + 1)
    preceding = tl.load(work_ptr + chunk * 5 + 2)
    count = tl.load(work_ptr + chunk * 5 + 3)
    entry = tl.load(work_ptr + chunk * 5 + 4)
    if (held == 0) | (count == 1):
        return
    value = tl.program_id(0) * DIMS + tl.arange(0, DIMS)
    place = tl.arange(0, SIZE_PAD)
    token = tl.arange(0, TOKENS)
    inside = token < held
    mask = inside[:, None] & (value < DIM)[None, :]
    offsets = ((begin + token) * HEADS + first)[:, None] * DIM + value[None, :]
    if count == 0:
        for i in range(SHARED):
            y = tl.zeros([TOKENS, DIMS], y_ptr.dtype.element_ty)
            tl.store(y_ptr + offsets + i * DIM, y, mask=mask)
        return
    shared = ((begin + token) * GROUPS + first // (HEADS // GROUPS))[:, None] * SIZE + place[None, :]
    B = tl.load(B_ptr + shared, mask=inside[:, None] & (place < SIZE)[None, :], other=0.0)
    C = tl.load(C_ptr + shared, mask=inside[:, None] & (place < SIZE)[None, :], other=0.0)
    scores = tl.dot(C, tl.trans(B), input_precision=PRECISION)
    scores = tl.where(token[:, None] >= token[None, :], scores, 0.0)
    continued = (preceding > 0) | (entry >= 0)
    passed_mask = (value < DIM)[None, :] & (place < SIZE)[:, None] & continued
    passed_ptrs = passed_ptr + ((chunk.to(tl.int64) * HEADS + first) * DIM + value)[None, :] * SIZE + place[:, None]
    dt_ptrs = dt_ptr + (begin + token) * HEADS + first
    for i in range(SHARED):
        dt = tl.load(dt_ptrs + i, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offsets + i * DIM, mask=mask, other=0.0)
        passed = tl.load(passed_ptrs + i * (DIM * SIZE), mask=passed_mask, other=0.0)
        log_decay = tl.cumsum(dt * (tl.load(A_ptr + first + i) * 1.4426950408889634), axis=0)
        # What a token's dt has decayed to at a later one. Between a token and an earlier one, whose score is zero, it
        # only must not overflow.
        log_dt = tl.log2(tl.maximum(dt, 1e-30))
        exponent = log_decay[:, None] - (log_decay - log_dt)[None, :]
        weights = scores * tl.exp2(tl.minimum(exponent, 64.0))
        y = tl.dot(C, passed, input_precision=PRECISION) * tl.exp2(log_decay)[:, None]
        y = tl.dot(weights.to(x.dtype), x, y, input_precision=PRECISION)
        if SKIP:
            y += tl.load(D_ptr + first + i).to(tl.float32) * x.to(tl.float32)
        tl.store(y_ptr + offsets + i * DIM, y.to(y_ptr.dtype.element_ty), mask=mask)
