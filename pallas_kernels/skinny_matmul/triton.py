# mypy: disallow-untyped-defs=False
"""skinny_matmul in Triton: a program per block of columns, which streams its part of the matrix once.

One row multiplies without tensor cores, elementwise over a tall block of which every element is on its way at once;
more rows go through tensor cores, padded to 16.
"""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning

_MAX_ROWS = 64


def skinny_matmul(x: jax.Array, w: jax.Array, *, gated: bool, dtype: jnp.dtype) -> jax.Array:
    """See pallas_kernels.skinny_matmul."""
    rows, size = x.shape
    columns = w.shape[1] // 2 if gated else w.shape[1]
    if rows > _MAX_ROWS:
        raise NotImplementedError(f"{rows} rows are over {_MAX_ROWS}")
    if x.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise NotImplementedError(f"operands are {x.dtype}, no float type")
    padded = 1 if rows == 1 else max(16, triton.next_power_of_2(rows))
    # columns, block: a program's columns, and rows of the matrix at a time. xla: its own matmul was measured faster.
    defaults = {
        "columns": 32,
        "block": 512 if rows == 1 else 128,
        "warps": 4,
        "stages": 1 if rows == 1 else 4,
        "xla": 0,
    }
    config = tuning.config(
        "skinny_matmul", "matmul", defaults, rows=padded, size=size, columns=columns, gated=int(gated)
    )
    if config["xla"]:
        raise NotImplementedError(f"XLA multiplies {padded} rows by {w.shape} faster")
    out: jax.Array = jax_triton.triton_call(
        x,
        w,
        kernel=_row_kernel if rows == 1 else _kernel,
        out_type=jax.ShapeDtypeStruct((rows, columns), dtype),
        grid=(-(-columns // config["columns"]),),
        name="skinny_matmul",
        num_warps=config["warps"],
        num_stages=config["stages"],
        SIZE=size,
        N=columns,
        GATED=gated,
        BLOCK_N=config["columns"],
        BLOCK_K=config["block"],
        **({} if rows == 1 else {"M": rows, "M_PAD": padded}),
    )
    return out


@triton.jit
def _finish(gate, other, GATED: tl.constexpr, like):
    if GATED:
        gate = gate.to(like).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(like).to(tl.float32) * other.to(like).to(tl.float32)
    return gate


@triton.jit
def _row_kernel(
    x_ptr, w_ptr, out_ptr, SIZE: tl.constexpr, N: tl.constexpr, GATED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One row. Sums stay apart, a row of the block each, until the end."""
    WIDTH: tl.constexpr = 2 * N if GATED else N
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < N
    gate = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    other = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    for start in tl.range(0, SIZE, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + k, mask=k < SIZE, other=0.0).to(tl.float32)[:, None]
        place = k.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mask = (k < SIZE)[:, None] & inside[None, :]
        w = tl.load(w_ptr + place, mask=mask, other=0.0)
        if GATED:
            other_w = tl.load(w_ptr + place + N, mask=mask, other=0.0)
            other += x * other_w.to(tl.float32)
        gate += x * w.to(tl.float32)
    out = _finish(tl.sum(gate, 0), tl.sum(other, 0), GATED, x_ptr.dtype.element_ty)
    tl.store(out_ptr + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(
    x_ptr, w_ptr, out_ptr, SIZE: tl.constexpr, N: tl.constexpr, GATED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, M: tl.constexpr, M_PAD: tl.constexpr,
):  # fmt: skip
    """M rows, through tensor cores."""
    WIDTH: tl.constexpr = 2 * N if GATED else N
    row = tl.arange(0, M_PAD)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < N
    gate = tl.zeros([M_PAD, BLOCK_N], tl.float32)
    other = tl.zeros([M_PAD, BLOCK_N], tl.float32)
    for start in tl.range(0, SIZE, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if SIZE % BLOCK_K == 0:
            x = tl.load(x_ptr + row[:, None] * SIZE + k[None, :], mask=(row < M)[:, None], other=0.0)
            mask = inside[None, :]
        else:
            x = tl.load(
                x_ptr + row[:, None] * SIZE + k[None, :], mask=(row < M)[:, None] & (k < SIZE)[None, :], other=0.0
            )
            mask = (k < SIZE)[:, None] & inside[None, :]
        place = k.to(tl.int64)[:, None] * WIDTH + column[None, :]
        if N % BLOCK_N == 0 and SIZE % BLOCK_K == 0:
            w = tl.load(w_ptr + place)
        else:
            w = tl.load(w_ptr + place, mask=mask, other=0.0)
        gate = tl.dot(x, w, gate, input_precision="tf32x3")
        if GATED:
            if N % BLOCK_N == 0 and SIZE % BLOCK_K == 0:
                other_w = tl.load(w_ptr + place + N)
            else:
                other_w = tl.load(w_ptr + place + N, mask=mask, other=0.0)
            other = tl.dot(x, other_w, other, input_precision="tf32x3")
    out = _finish(gate, other, GATED, x_ptr.dtype.element_ty)
    place = row[:, None] * N + column[None, :]
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=(row < M)[:, None] & inside[None, :])
