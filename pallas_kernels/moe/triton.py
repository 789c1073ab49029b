# mypy: disallow-untyped-defs=False
"""moe in Triton: two grouped matmuls over blocks of assignments to one expert, the activation fused into the first.

The first reads each block's tokens where they lie and leaves activation(gate) * up in the order of the blocks; the
second writes each assignment's result at its own place, and XLA weights and sums them, fused with what follows.
At decode sizes, where most experts are chosen once or never, a block is one assignment: nothing is sorted, and an
expert that several tokens chose at once comes from the L2 cache after the first.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.moe.schedule import schedule


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
    if 100 * assignments <= config["alone"] * num_experts:
        order = start = jnp.arange(assignments, dtype=jnp.int32)
        expert = jnp.where(valid, expert_ids, 0).reshape(-1)
        count = valid.reshape(-1).astype(jnp.int32)
    else:
        order, expert, start, count, _, _ = schedule(expert_ids, num_experts, config["rows"])
    blocks = expert.shape[0]
    shape = {
        "num_warps": config["warps"],
        "num_stages": config["stages"],
        "ROWS": config["rows"],
        "DEPTH": config["depth"],
        "PRECISION": "tf32x3" if x.dtype == jnp.float32 else "tf32",  # the first's error is near float32's own
    }

    hidden = jax_triton.triton_call(
        x,
        gate_up,
        x if gate_up_bias is None else gate_up_bias,
        order,
        expert,
        start,
        count,
        kernel=_gate_up_kernel,
        out_type=jax.ShapeDtypeStruct((assignments, inner), x.dtype),
        grid=(blocks, -(-inner // config["inner"])),
        name="moe_gate_up",
        PER_TOKEN=per_token,
        IN=size,
        OUT=inner,
        COLUMNS=config["inner"],
        BIAS=gate_up_bias is not None,
        ACTIVATION=activation,
        **shape,
    )
    out = jax_triton.triton_call(
        hidden,
        down,
        x if down_bias is None else down_bias,
        order,
        expert,
        start,
        count,
        kernel=_down_kernel,
        out_type=jax.ShapeDtypeStruct((assignments, size), x.dtype),
        grid=(blocks, -(-size // config["size"])),
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


@triton.jit
def _gated(gate, up, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "relu":
        gate = tl.maximum(gate, 0.0)
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
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """COLUMNS of one block's hidden values. x: [T, IN]; weight: [X, IN, 2 * OUT]; hidden: [T * PER_TOKEN, OUT]."""
    block = tl.program_id(0)
    count = tl.load(count_ptr + block)
    if count > 0:
        expert = tl.load(expert_ptr + block).to(tl.int64)
        row = tl.arange(0, ROWS)
        place = tl.load(start_ptr + block) + row
        token = tl.load(order_ptr + place, mask=row < count, other=0).to(tl.int64) // PER_TOKEN
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        x_ptrs = x_ptr + token[:, None] * IN + depth[None, :]
        gate_ptrs = weight_ptr + expert * (IN * 2 * OUT) + depth[:, None] * (2 * OUT) + column[None, :]
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for done in range(0, IN, DEPTH):
            inside = depth < IN - done
            mask = inside[:, None] & (column < OUT)[None, :]
            x = tl.load(x_ptrs + done, mask=(row < count)[:, None] & inside[None, :], other=0.0)
            gate_weight = tl.load(gate_ptrs, mask=mask, other=0.0)
            up_weight = tl.load(gate_ptrs + OUT, mask=mask, other=0.0)
            gate = tl.dot(x, gate_weight, gate, input_precision=PRECISION)
            up = tl.dot(x, up_weight, up, input_precision=PRECISION)
            gate_ptrs += DEPTH * 2 * OUT
        if BIAS:
            bias_ptrs = bias_ptr + expert * (2 * OUT) + column
            gate += tl.load(bias_ptrs, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
            up += tl.load(bias_ptrs + OUT, mask=column < OUT, other=0.0).to(tl.float32)[None, :]
        hidden = _gated(gate, up, ACTIVATION).to(hidden_ptr.dtype.element_ty)
        mask = (row < count)[:, None] & (column < OUT)[None, :]
        tl.store(hidden_ptr + place.to(tl.int64)[:, None] * OUT + column[None, :], hidden, mask=mask)


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
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """COLUMNS of one block's results. hidden: [N, IN], by block; weight: [X, IN, OUT]; out: [N, OUT], by assignment."""
    block = tl.program_id(0)
    count = tl.load(count_ptr + block)
    if count > 0:
        expert = tl.load(expert_ptr + block).to(tl.int64)
        row = tl.arange(0, ROWS)
        place = tl.load(start_ptr + block) + row
        assignment = tl.load(order_ptr + place, mask=row < count, other=0).to(tl.int64)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        depth = tl.arange(0, DEPTH)
        hidden_ptrs = hidden_ptr + place.to(tl.int64)[:, None] * IN + depth[None, :]
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
