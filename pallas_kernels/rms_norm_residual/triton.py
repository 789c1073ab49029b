# mypy: disallow-untyped-defs=False
"""rms_norm_residual in Triton: a program per vector, which it reads once."""

import math

import jax
import jax_triton
import triton
import triton.language as tl

_MAX_SIZE = 32768  # a vector lies in the registers of one program


def rms_norm_residual(x: jax.Array, residual: jax.Array, weight: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.rms_norm_residual."""
    size = x.shape[-1]
    if size > _MAX_SIZE:
        raise NotImplementedError(f"vectors of {size} are over {_MAX_SIZE}")
    padded = triton.next_power_of_2(size)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    normed, total = jax_triton.triton_call(
        x,
        residual,
        weight,
        kernel=_rms_norm_residual_kernel,
        out_type=(like, like),
        grid=(math.prod(x.shape[:-1]),),
        name="rms_norm_residual",
        num_warps=min(16, max(1, padded // 512)),
        SIZE=size,
        SIZE_PAD=padded,
        EPS=eps,
    )
    return normed, total


@triton.jit
def _rms_norm_residual_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    total_ptr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    EPS: tl.constexpr,
):
    place = tl.arange(0, SIZE_PAD)
    mask = place < SIZE
    first = tl.program_id(0).to(tl.int64) * SIZE
    weight = tl.load(weight_ptr + place, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + first + place, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + first + place, mask=mask, other=0.0).to(tl.float32)
    total = (residual + x).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + first + place, total, mask=mask)
    wide = total.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide) / SIZE + EPS)
    tl.store(normed_ptr + first + place, (wide * inverse * weight).to(normed_ptr.dtype.element_ty), mask=mask)
