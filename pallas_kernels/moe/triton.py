# mypy: disallow-untyped-defs=False
"""moe in Triton: two grouped matmuls over blocks of assignments to one expert, the activation fused into the first.

The first reads each block's tokens where they lie and leaves activation(gate) * up of each assignment at its place in
its block; the second leaves its results at the assignments' own places, and XLA weights and sums them, fused with what
follows. A kernel before them lists each expert's assignments in blocks, after one that counts them where they are many.
At decode sizes, where most experts are chosen once or never, a block is one assignment: nothing is listed. The columns
of a block run next to each other, and blocks of one expert after each other, so that a block's rows and an expert's
weights come from memory once and then from the L2 cache. Where the second matmul's programs take tile after tile, the
loop over tiles and the one over depth are one to the compiler: the next tile's loads begin before one's results leave.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jax_triton import triton_lib

from pallas_kernels import tuning

_MANY = 1024  # assignments to an expert from which on more change nothing: they fill its blocks
_TAKEN = 128  # assignments that a program of the listing kernel lists
_LISTED = 2048  # up to how many assignments each program of the listing kernel counts all of them
_SECTION = 1024  # how many a program of the counting kernel counts beyond that, or more


def moe(
    x: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    expert_ids: jax.Array,
    expert_weights: jax.Array,
    gate_up_bias: jax.Array | None,
    down_bias: jax.Array | None,
    *,
    activation: str,
) -> jax.Array:
    """See pallas_kernels.moe."""
    if not x.dtype == gate_up.dtype == down.dtype or x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"x {x.dtype}, gate_up {gate_up.dtype}, down {down.dtype}: must be one float type")
    num_experts, inner, size = down.shape
    tokens, per_token = expert_ids.shape
    assignments = tokens * per_token
    valid = (expert_ids >= 0) & (expert_ids < num_experts)

    rows = triton.next_power_of_2(max(1, assignments // num_experts))  # of a block, when the experts are balanced
    defaults = {"rows": min(128, max(16, rows)), "inner": 64, "size": 64, "depth": 64, "warps": 4, "stages": 3}
    if x.dtype.itemsize == 4:
        defaults |= {"rows": min(64, defaults["rows"]), "inner": 32, "depth": 32}
    elif defaults["rows"] == 128:
        defaults |= {"inner": 128, "size": 128, "warps": 8}
    # alone: up to how many assignments per expert a block is one assignment, in hundredths. tma: whether down's tiles
    # come by TMA, which compute capability 9.0 has; programs: how many then take them in turns, 0 for one each.
    defaults |= {"down_warps": 4, "down_stages": 3, "alone": 50, "tma": 0, "programs": 0}
    config = tuning.config("moe", "grouped", defaults, rows=min(rows, _MANY), bytes=x.dtype.itemsize)
    alone = 100 * assignments <= config["alone"] * num_experts
    if alone:
        ids = expert_ids.reshape(-1)
        plan = Plan(ids, ids, ids, ids)  # the experts; what else there is of a plan is not read
    else:
        plan = _plan(expert_ids, num_experts, config["rows"])
    blocks = plan.expert.shape[0]
    shape = {
        "ROWS": config["rows"],
        "DEPTH": config["depth"],
        "EXPERTS": num_experts,
        "ALONE": alone,
        "PRECISION": "tf32x3" if x.dtype == jnp.float32 else "tf32",  # the first's error is near float32's own
    }
    hidden = jax_triton.triton_call(
        x,
        gate_up,
        x if gate_up_bias is None else gate_up_bias,
        *plan,
        kernel=_gate_up_kernel,
        out_type=jax.ShapeDtypeStruct((blocks * config["rows"], inner), x.dtype),
        grid=(blocks * -(-inner // config["inner"]),),
        name="moe_gate_up",
        num_warps=config["warps"],
        num_stages=config["stages"],
        PER_TOKEN=per_token,
        IN=size,
        OUT=inner,
        COLUMNS=config["inner"],
        PARTS=gate_up.shape[2] // inner,
        BIAS=gate_up_bias is not None,
        ACTIVATION=activation,
        **shape,
    )
    operands, tiles = (hidden, down), blocks * -(-size // config["size"])
    # A tile of weights must end within its expert, and rows begin at multiples of 16 bytes.
    tma = config["tma"] > 0 and not alone and x.dtype.itemsize == 2 and inner % config["depth"] == size % 8 == 0
    if tma:
        boxes = (config["rows"], config["depth"]), (config["depth"], config["size"])
        matrices = hidden, down.reshape(num_experts * inner, size)
        operands = tuple(map(_descriptor, matrices, boxes))
    programs = min(tiles, config["programs"] or tiles) if tma else tiles
    out = jax_triton.triton_call(
        *operands,
        x if down_bias is None else down_bias,
        *plan,
        kernel=_down_kernel,
        out_type=jax.ShapeDtypeStruct((assignments, size), x.dtype),
        grid=(programs,),
        name="moe_down",
        num_warps=config["down_warps"],
        num_stages=config["down_stages"],
        IN=inner,
        OUT=size,
        COLUMNS=config["size"],
        PROGRAMS=programs if programs < tiles else 0,
        TMA=tma,
        BIAS=down_bias is not None,
        **shape,
    )
    # What no block wrote, the results of assignments to no expert, may be anything.
    weighted = out.reshape(tokens, per_token, size).astype(jnp.float32) * expert_weights[:, :, None]
    return jnp.where(valid[:, :, None], weighted, 0.0).sum(axis=1).astype(x.dtype)


def _descriptor(matrix: jax.Array, box: tuple[int, int]) -> jax_triton.TensorDescriptor:
    """A matrix for TMA to read boxes of; made by the host, since one made in a kernel allocates memory at each launch,
    which command buffers do not take."""
    # jax-triton 0.4.1 asks of a descriptor's metadata a key which Triton 3.7 does not give, and then does without it.
    asked = triton_lib.TensorDescMeta
    asked.__required_keys__ = asked.__required_keys__ - {"is_im2col"}
    return jax_triton.TensorDescriptor.from_array(matrix, box)


class Plan(NamedTuple):
    """Blocks of at most S assignments to one expert, B of them at the most.

    order: [B * S] int32, the assignments of each block; expert, filled: [B] int32, a block's expert, and how many
    assignments it holds; used: [1] int32, how many blocks there are; what lies behind them, and behind a block's
    assignments, may be anything.
    """

    order: jax.Array
    expert: jax.Array
    filled: jax.Array
    used: jax.Array


def _plan(expert_ids: jax.Array, num_experts: int, size: int) -> Plan:
    """expert_ids: [T, K]; size: the most assignments that a block takes."""
    assignments = expert_ids.size
    blocks = (assignments + min(assignments, num_experts) * (size - 1)) // size
    power = max(_TAKEN, triton.next_power_of_2(assignments))
    counted = power > _LISTED
    section = max(_SECTION, power // 128) if counted else power
    sections = -(-assignments // section)
    shape = {"EXPERTS": num_experts, "SECTION": section, "num_warps": 4}
    shape |= {"WIDTH": max(32, triton.next_power_of_2(num_experts))}
    counts = expert_ids  # not read where there are none
    if counted:
        counts = jax_triton.triton_call(
            expert_ids,
            kernel=_count_kernel,
            out_type=jax.ShapeDtypeStruct((sections, num_experts), jnp.int32),
            grid=(sections,),
            name="moe_count",
            LAST=(assignments - 1) % section + 1,
            **shape,
        )
    plan = jax_triton.triton_call(
        expert_ids,
        counts,
        kernel=_list_kernel,
        out_type=tuple(jax.ShapeDtypeStruct((n,), jnp.int32) for n in (blocks * size, blocks, blocks, 1)),
        grid=(-(-assignments // _TAKEN),),
        name="moe_list",
        LAST=(assignments - 1) % _TAKEN + 1,
        TAKEN=_TAKEN,
        SIZE=size,
        COUNTED=counted,
        AT_ONCE=min(triton.next_power_of_2(sections), max(1, 8192 // shape["WIDTH"])),  # as registers allow
        **shape,
    )
    return Plan(*plan)


@triton.jit
def _counts(ids, mask, EXPERTS: tl.constexpr, WIDTH: tl.constexpr):
    """How many of the ids are each expert's, [WIDTH]."""
    return tl.histogram(ids, WIDTH, mask=mask & (ids >= 0) & (ids < EXPERTS))


@triton.jit
def _count_kernel(
    ids_ptr, counts_ptr, LAST: tl.constexpr, EXPERTS: tl.constexpr, WIDTH: tl.constexpr, SECTION: tl.constexpr
):
    """How many of one section's assignments are each expert's; the last one has LAST. counts: [sections, EXPERTS]."""
    section = tl.program_id(0)
    assignment = section * SECTION + tl.arange(0, SECTION)
    real = assignment < (tl.num_programs(0) - 1) * SECTION + LAST
    ids = tl.load(ids_ptr + assignment, mask=real, other=0)
    expert = tl.arange(0, WIDTH)
    tl.store(counts_ptr + section * EXPERTS + expert, _counts(ids, real, EXPERTS, WIDTH), mask=expert < EXPERTS)


@triton.jit
def _list_kernel(
    ids_ptr,
    counts_ptr,
    order_ptr,
    expert_ptr,
    filled_ptr,
    used_ptr,
    LAST: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAKEN: tl.constexpr,
    SECTION: tl.constexpr,
    AT_ONCE: tl.constexpr,
    COUNTED: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Lists TAKEN assignments, the last program LAST of them. Each counts those before its own for itself, and so waits
    for no other."""
    program = tl.program_id(0)
    assignments = (tl.num_programs(0) - 1) * TAKEN + LAST
    begin = program * TAKEN
    section = begin // SECTION
    expert = tl.arange(0, WIDTH)
    assignment = section * SECTION + tl.arange(0, SECTION)
    ids = tl.load(ids_ptr + assignment, mask=assignment < assignments, other=-1)
    before = _counts(ids, assignment < begin, EXPERTS, WIDTH)
    if COUNTED:
        counts = tl.zeros([WIDTH], tl.int32)
        sections = (assignments + SECTION - 1) // SECTION
        for done in range(0, sections, AT_ONCE):
            other = done + tl.arange(0, AT_ONCE)[:, None]
            known = (other < sections) & (expert < EXPERTS)[None, :]
            counted = tl.load(counts_ptr + other * EXPERTS + expert[None, :], mask=known, other=0)
            counts += tl.sum(counted, 0)
            before += tl.sum(tl.where(other < section, counted, 0), 0)
    else:
        counts = _counts(ids, assignment < assignments, EXPERTS, WIDTH)
    blocks = (counts + SIZE - 1) // SIZE
    first = tl.cumsum(blocks, 0) - blocks

    own = begin + tl.arange(0, TAKEN)
    ids = tl.load(ids_ptr + own, mask=own < assignments, other=-1)
    earlier = tl.arange(0, TAKEN)[:, None] < tl.arange(0, TAKEN)[None, :]
    rank = tl.sum(((ids[:, None] == ids[None, :]) & earlier).to(tl.int32), 0)
    real = (ids >= 0) & (ids < EXPERTS)
    place = tl.gather(first * SIZE + before, tl.where(real, ids, 0), 0) + rank
    tl.store(order_ptr + place, own, mask=real)

    for turn in range(program, tl.max(blocks, 0), tl.num_programs(0)):
        tl.store(expert_ptr + first + turn, expert, mask=turn < blocks)
        tl.store(filled_ptr + first + turn, tl.minimum(counts - turn * SIZE, SIZE), mask=turn < blocks)
    if program == 0:
        tl.store(used_ptr, tl.sum(blocks, 0))


@triton.jit
def _sigmoid(x):
    """tl.sigmoid in a third of its instructions, which tensor cores would wait for: rsqrt(y)^2 divides by y."""
    root = tl.math.rsqrt(1.0 + tl.math.exp2(-1.4426950408889634 * x))
    return root * root


@triton.jit
def _gated(gate, up, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        gate = gate * _sigmoid(gate)
    elif ACTIVATION == "relu":
        gate = tl.maximum(gate, 0.0)
    elif ACTIVATION == "relu2":
        gate = tl.maximum(gate, 0.0)
        up = gate
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 0.5 * (1 + tanh(y)) = sigmoid(2 * y), y = sqrt(2 / pi) * (...)
        gate = gate * _sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        tl.static_assert(ACTIVATION == "clamped_swiglu")
        gate = tl.minimum(gate, 7.0)
        gate = gate * _sigmoid(1.702 * gate)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0) + 1.0
    return gate * up


@triton.jit
def _block(block, expert_ptr, filled_ptr, EXPERTS: tl.constexpr, ALONE: tl.constexpr):
    """A block's expert, and how many assignments it holds; alone, an assignment is a block."""
    expert = tl.load(expert_ptr + block)
    count = ((expert >= 0) & (expert < EXPERTS)).to(tl.int32) if ALONE else tl.load(filled_ptr + block)
    return expert.to(tl.int64), count


@triton.jit
def _assignments(block, count, order_ptr, ROWS: tl.constexpr, ALONE: tl.constexpr):
    """A block's assignments, [ROWS] int64."""
    row = tl.arange(0, ROWS)
    assignment = block + row if ALONE else tl.load(order_ptr + block * ROWS + row, mask=row < count, other=0)
    return assignment.to(tl.int64)


@triton.jit
def _product(
    x_ptrs,
    x_mask,
    weight_ptrs,
    weight_mask,
    count,
    IN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    MASKED: tl.constexpr,
    ALONE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x @ weight, [ROWS, COLUMNS] float32. x_ptrs, x_mask: [ROWS, 1], where rows begin; weight_ptrs, weight_mask:
    [1, COLUMNS], where columns do, WIDTH apart; MASKED: DEPTH does not divide IN, or weight_mask is not all."""
    depth = tl.arange(0, DEPTH)
    x_ptrs += depth[None, :]
    weight_ptrs += depth[:, None] * WIDTH
    out = tl.zeros((ROWS, COLUMNS), tl.float32)
    end = IN
    if ALONE:  # nothing is read for an assignment to no expert
        end = IN * count
    for done in range(0, end, DEPTH):
        if MASKED:
            inside = depth < IN - done
            x = tl.load(x_ptrs + done, mask=x_mask & inside[None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=weight_mask & inside[:, None], other=0.0)
        else:
            x = tl.load(x_ptrs + done, mask=x_mask, other=0.0)
            weight = tl.load(weight_ptrs)
        out = tl.dot(x, weight, out, input_precision=PRECISION)
        weight_ptrs += DEPTH * WIDTH
    return out


@triton.jit
def _gate_up_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    order_ptr,
    expert_ptr,
    filled_ptr,
    used_ptr,
    hidden_ptr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    ALONE: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """COLUMNS of one block's hidden values, block after block. x: [T, IN]; weight: [X, IN, PARTS * OUT], PARTS being 2
    where there is a gate; hidden: [B * ROWS, OUT]. Gate and up are one matmul, which wgmma does at its widest."""
    WIDTH: tl.constexpr = PARTS * OUT
    TILES: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    MASKED: tl.constexpr = IN % DEPTH != 0 or OUT % COLUMNS != 0
    row = tl.arange(0, ROWS)
    own = tl.arange(0, COLUMNS)
    both = tl.arange(0, PARTS * COLUMNS)
    block = tl.program_id(0) // TILES
    first = tl.program_id(0) % TILES * COLUMNS
    if not ALONE and block >= tl.load(used_ptr):
        return
    expert, count = _block(block, expert_ptr, filled_ptr, EXPERTS, ALONE)
    assignment = _assignments(block, count, order_ptr, ROWS, ALONE)
    x_ptrs = x_ptr + (assignment // PER_TOKEN)[:, None] * IN
    column = first + both % COLUMNS
    known = column < OUT
    column += both // COLUMNS * OUT
    out = _product(
        x_ptrs,
        (row < count)[:, None],
        weight_ptr + expert * (IN * WIDTH) + column[None, :],
        known[None, :],
        count,
        IN,
        WIDTH,
        ROWS,
        PARTS * COLUMNS,
        DEPTH,
        MASKED,
        ALONE,
        PRECISION,
    )
    if BIAS:
        there = known & (count > 0)  # the expert of a block that holds nothing may be none
        out += tl.load(bias_ptr + expert * WIDTH + column, mask=there, other=0.0).to(tl.float32)[None, :]
    if PARTS == 2:
        gate, up = out.reshape(ROWS, 2, COLUMNS).permute(0, 2, 1).split()
    else:
        gate, up = out, out
    hidden = _gated(gate, up, ACTIVATION).to(hidden_ptr.dtype.element_ty)
    hidden_ptrs = hidden_ptr + block.to(tl.int64) * (ROWS * OUT) + row[:, None] * OUT + (first + own)[None, :]
    tl.store(hidden_ptrs, hidden, mask=(row < count)[:, None] & (first + own < OUT)[None, :])


@triton.jit
def _down_kernel(
    hidden,
    weight,
    bias_ptr,
    order_ptr,
    expert_ptr,
    filled_ptr,
    used_ptr,
    out_ptr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TMA: tl.constexpr,
    ALONE: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """COLUMNS of one block's results, block after block: of each tile a program, or PROGRAMS that take them in turns.
    hidden: [B * ROWS, IN]; weight: [X, IN, OUT], both where they begin, or descriptors for TMA; out: [N, OUT], by
    assignment."""
    TILES: tl.constexpr = (OUT + COLUMNS - 1) // COLUMNS
    MASKED: tl.constexpr = IN % DEPTH != 0 or OUT % COLUMNS != 0
    row = tl.arange(0, ROWS)
    step = PROGRAMS if PROGRAMS else tl.num_programs(0)
    end = step if ALONE else tl.load(used_ptr) * TILES
    for tile in tl.range(tl.program_id(0), end, step, flatten=PROGRAMS > 0):
        block = tile // TILES
        first = tile % TILES * COLUMNS
        column = first + tl.arange(0, COLUMNS)
        known = (column < OUT)[None, :]
        expert, count = _block(block, expert_ptr, filled_ptr, EXPERTS, ALONE)
        real = (row < count)[:, None]
        if TMA:
            begin = expert.to(tl.int32) * IN
            out = tl.zeros((ROWS, COLUMNS), tl.float32)
            for done in range(0, IN, DEPTH):
                out = tl.dot(hidden.load([block * ROWS, done]), weight.load([begin + done, first]), out)
        else:
            out = _product(
                hidden + block.to(tl.int64) * (ROWS * IN) + row[:, None] * IN,
                real,
                weight + expert * (IN * OUT) + column[None, :],
                known,
                count,
                IN,
                OUT,
                ROWS,
                COLUMNS,
                DEPTH,
                MASKED,
                ALONE,
                PRECISION,
            )
        if BIAS:
            there = (column < OUT) & (count > 0)
            out += tl.load(bias_ptr + expert * OUT + column, mask=there, other=0.0).to(tl.float32)[None, :]
        # Where the results go is read this late so that no registers hold it meanwhile.
        assignment = _assignments(block, count, order_ptr, ROWS, ALONE)
        out_ptrs = out_ptr + assignment[:, None] * OUT + column[None, :]
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=real & known)
