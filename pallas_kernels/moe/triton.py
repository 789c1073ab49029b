# mypy: disallow-untyped-defs=False
"""moe in Triton: two grouped matmuls over blocks of assignments to one expert, the activation fused into the first.

The first reads each block's tokens where they lie and leaves activation(gate) * up of each assignment at its own place,
as the second does with its result; XLA weights and sums them, fused with what follows. One kernel before them lists
each expert's assignments and cuts the lists into blocks. At decode sizes, where most experts are chosen once or never,
a block is one assignment: nothing is listed. The columns of a block run next to each other, and blocks of one expert
after each other, so that a block's rows and an expert's weights come from memory once and then from the L2 cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning

_PLANNED = 1024  # assignments that one program of the planning kernel takes


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
        defaults |= {"rows": min(64, defaults["rows"]), "depth": 32}
    elif defaults["rows"] == 128:
        defaults |= {"inner": 128, "size": 128, "warps": 8}
    # alone: up to how many assignments per expert a block is one assignment, in hundredths.
    config = tuning.config("moe", "grouped", defaults | {"alone": 50}, rows=rows, bytes=x.dtype.itemsize)
    alone = 100 * assignments <= config["alone"] * num_experts
    if alone:
        ids = expert_ids.reshape(-1)
        plan = Plan(ids, ids, ids, ids)  # the experts; what else there is of a plan is not read
    else:
        plan = _plan(expert_ids, num_experts, config["rows"])
    blocks = plan.expert.shape[0]
    shape = {
        "num_warps": config["warps"],
        "num_stages": config["stages"],
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
        out_type=jax.ShapeDtypeStruct((assignments, inner), x.dtype),
        grid=(-(-inner // config["inner"]), blocks),
        name="moe_gate_up",
        PER_TOKEN=per_token,
        IN=size,
        OUT=inner,
        COLUMNS=config["inner"],
        GATED=gate_up.shape[2] == 2 * inner,
        BIAS=gate_up_bias is not None,
        ACTIVATION=activation,
        **shape,
    )
    out = jax_triton.triton_call(
        hidden,
        down,
        x if down_bias is None else down_bias,
        *plan,
        kernel=_down_kernel,
        out_type=jax.ShapeDtypeStruct((assignments, size), x.dtype),
        grid=(-(-size // config["size"]), blocks),
        name="moe_down",
        IN=inner,
        OUT=size,
        COLUMNS=config["size"],
        BIAS=down_bias is not None,
        **shape,
    )
    # What no block wrote, the results of assignments to no expert, may be anything.
    weighted = out.reshape(tokens, per_token, size).astype(jnp.float32) * expert_weights[:, :, None]
    return jnp.where(valid[:, :, None], weighted, 0.0).sum(axis=1).astype(x.dtype)


class Plan(NamedTuple):
    """Blocks of assignments to one expert, as schedule.Schedule has them.

    order: [X * T] int32, a list of T places for each expert's assignments; expert, start, filled: [B] int32.
    """

    order: jax.Array
    expert: jax.Array
    start: jax.Array
    filled: jax.Array


def _plan(expert_ids: jax.Array, num_experts: int, size: int) -> Plan:
    """expert_ids: [T, K]; size: the most assignments that a block takes."""
    tokens, assignments = expert_ids.shape[0], expert_ids.size
    blocks = (assignments + min(assignments, num_experts) * (size - 1)) // size
    programs = -(-assignments // _PLANNED)
    # Of each expert, and last how many programs are through. A single program clears them itself.
    counts = jax.ShapeDtypeStruct((num_experts + 1,), jnp.int32)
    lists = tuple(jax.ShapeDtypeStruct((n,), jnp.int32) for n in (num_experts * tokens, blocks, blocks, blocks))
    plan = jax_triton.triton_call(
        expert_ids,
        *(() if programs == 1 else (jax.new_ref(jnp.zeros(counts.shape, counts.dtype)),)),
        kernel=_plan_kernel,
        out_type=(counts, *lists) if programs == 1 else lists,
        grid=(programs,),
        name="moe_plan",
        num_warps=8,
        TOKENS=tokens,
        ASSIGNMENTS=assignments,
        EXPERTS=num_experts,
        WIDTH=triton.next_power_of_2(num_experts),
        SIZE=size,
        BLOCKS=blocks,
        PROGRAMS=programs,
        PLANNED=min(_PLANNED, triton.next_power_of_2(assignments)),
        TOGETHER=max(1, min(triton.next_power_of_2(blocks), 8192 // triton.next_power_of_2(num_experts))),
    )
    return Plan(*plan[-4:])


@triton.jit
def _plan_kernel(
    ids_ptr,
    counts_ptr,
    order_ptr,
    expert_ptr,
    start_ptr,
    count_ptr,
    TOKENS: tl.constexpr,
    ASSIGNMENTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    PLANNED: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Lists PLANNED assignments by expert, in any order: no result depends on it. The last program cuts the lists."""
    experts = tl.arange(0, WIDTH)
    if PROGRAMS == 1:
        tl.store(counts_ptr + experts, tl.zeros([WIDTH], tl.int32), mask=experts < EXPERTS)
        tl.debug_barrier()
    assignment = tl.program_id(0) * PLANNED + tl.arange(0, PLANNED)
    expert = tl.load(ids_ptr + assignment, mask=assignment < ASSIGNMENTS, other=-1)
    chosen = (expert >= 0) & (expert < EXPERTS)
    place = tl.atomic_add(counts_ptr + expert, tl.full([PLANNED], 1, tl.int32), mask=chosen, sem="relaxed")
    # No list overflows, even if a token of scores that are no numbers chose an expert twice.
    tl.store(order_ptr + expert * TOKENS + place, assignment, mask=chosen & (place < TOKENS))
    tl.debug_barrier()
    through = PROGRAMS - 1
    if PROGRAMS > 1:
        through = tl.atomic_add(counts_ptr + EXPERTS, 1)
    if through == PROGRAMS - 1:
        # Past the first-level cache, which knows nothing of other programs' counts.
        counts = tl.load(counts_ptr + experts, mask=experts < EXPERTS, other=0, cache_modifier=".cg")
        counts = tl.minimum(counts, TOKENS)
        blocks = (counts + SIZE - 1) // SIZE
        ends = tl.cumsum(blocks, 0)
        for first in range(0, BLOCKS, TOGETHER):
            block = first + tl.arange(0, TOGETHER)
            before = ends[None, :] <= block[:, None]
            own = tl.sum(before.to(tl.int32), 1)
            start = (block - tl.sum(tl.where(before, blocks[None, :], 0), 1)) * SIZE
            held = tl.sum(tl.where(experts[None, :] == own[:, None], counts[None, :], 0), 1)
            own = tl.minimum(own, EXPERTS - 1)
            inside = block < BLOCKS
            tl.store(expert_ptr + block, own, mask=inside)
            tl.store(start_ptr + block, own * TOKENS + start, mask=inside)
            tl.store(count_ptr + block, tl.minimum(tl.maximum(held - start, 0), SIZE), mask=inside)


@triton.jit
def _block(
    block, order_ptr, expert_ptr, start_ptr, count_ptr, EXPERTS: tl.constexpr, ROWS: tl.constexpr, ALONE: tl.constexpr
):
    """A block's expert, its assignments [ROWS], and how many they are; alone, an assignment is a block."""
    row = tl.arange(0, ROWS)
    expert = tl.load(expert_ptr + block)
    if ALONE:
        count = ((expert >= 0) & (expert < EXPERTS)).to(tl.int32)
        assignment = block + row
    else:
        count = tl.load(count_ptr + block)
        assignment = tl.load(order_ptr + tl.load(start_ptr + block) + row, mask=row < count, other=0)
    return expert.to(tl.int64), assignment.to(tl.int64), count


@triton.jit
def _gated(gate, up, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "relu":
        gate = tl.maximum(gate, 0.0)
    elif ACTIVATION == "relu2":
        gate = tl.maximum(gate, 0.0)
        up = gate
    elif ACTIVATION == "gelu":
        gate = 0.5 * gate * (1.0 + tl.math.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 0.5 * (1 + tanh(y)) = sigmoid(2 * y), y = sqrt(2 / pi) * (...)
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        tl.static_assert(ACTIVATION == "clamped_swiglu")
        gate = tl.minimum(gate, 7.0)
        gate = gate * tl.sigmoid(1.702 * gate)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0) + 1.0
    return gate * up


@triton.jit
def _gate_up_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    order_ptr,
    expert_ptr,
    start_ptr,
    count_ptr,
    hidden_ptr,
    PER_TOKEN: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    ALONE: tl.constexpr,
    GATED: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """COLUMNS of one block's hidden values. x: [T, IN]; weight: [X, IN, WIDTH], WIDTH being 2 * OUT, or OUT where
    there is no gate; hidden: [T * PER_TOKEN, OUT]."""
    WIDTH: tl.constexpr = 2 * OUT if GATED else OUT
    block = tl.program_id(1)
    expert, assignment, count = _block(block, order_ptr, expert_ptr, start_ptr, count_ptr, EXPERTS, ROWS, ALONE)
    if count > 0:
        row = tl.arange(0, ROWS)
        token = assignment // PER_TOKEN
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        x_ptrs = x_ptr + token[:, None] * IN + depth[None, :]
        gate_ptrs = weight_ptr + expert * (IN * WIDTH) + depth[:, None] * WIDTH + column[None, :]
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for done in range(0, IN, DEPTH):
            inside = depth < IN - done
            mask = inside[:, None] & (column < OUT)[None, :]
            x = tl.load(x_ptrs + done, mask=(row < count)[:, None] & inside[None, :], other=0.0)
            gate_weight = tl.load(gate_ptrs, mask=mask, other=0.0)
            gate = tl.dot(x, gate_weight, gate, input_precision=PRECISION)
            if GATED:
                up_weight = tl.load(gate_ptrs + OUT, mask=mask, other=0.0)
                up = tl.dot(x, up_weight, up, input_precision=PRECISION)
            gate_ptrs += DEPTH * WIDTH
        if BIAS:
            bias_ptrs = bias_ptr + expert * WIDTH + column
            gate += tl.load(bias_ptrs, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
            if GATED:
                up += tl.load(bias_ptrs + OUT, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
        hidden = _gated(gate, up, ACTIVATION).to(hidden_ptr.dtype.element_ty)
        mask = (row < count)[:, None] & (column < OUT)[None, :]
        tl.store(hidden_ptr + assignment[:, None] * OUT + column[None, :], hidden, mask=mask)


@triton.jit
def _down_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    order_ptr,
    expert_ptr,
    start_ptr,
    count_ptr,
    out_ptr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    ALONE: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """COLUMNS of one block's results. hidden: [N, IN]; weight: [X, IN, OUT]; out: [N, OUT]; N by assignment."""
    block = tl.program_id(1)
    expert, assignment, count = _block(block, order_ptr, expert_ptr, start_ptr, count_ptr, EXPERTS, ROWS, ALONE)
    if count > 0:
        row = tl.arange(0, ROWS)
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        hidden_ptrs = hidden_ptr + assignment[:, None] * IN + depth[None, :]
        weight_ptrs = weight_ptr + expert * (IN * OUT) + depth[:, None] * OUT + column[None, :]
        out = tl.zeros((ROWS, COLUMNS), tl.float32)
        for done in range(0, IN, DEPTH):
            inside = depth < IN - done
            hidden = tl.load(hidden_ptrs + done, mask=(row < count)[:, None] & inside[None, :], other=0.0)
            weight = tl.load(weight_ptrs, mask=inside[:, None] & (column < OUT)[None, :], other=0.0)
            out = tl.dot(hidden, weight, out, input_precision=PRECISION)
            weight_ptrs += DEPTH * OUT
        if BIAS:
            bias = tl.load(bias_ptr + expert * OUT + column, mask=column < OUT, other=0.0)
            out += bias.to(tl.float32)[None, :]
        mask = (row < count)[:, None] & (column < OUT)[None, :]
        tl.store(out_ptr + assignment[:, None] * OUT + column[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
