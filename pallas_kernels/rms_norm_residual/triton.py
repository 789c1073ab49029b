# mypy: disallow-untyped-defs=False
"""rms_norm_residual in Triton: a program per vector, which it reads once."""

import math

import jax
import jax_triton
import triton
import triton.language as tl

from pallas_kernels.prefetch import fetch_share, fetching

_MAX_SIZE = 32768  # a vector lies in the registers of one program


def rms_norm_residual(
    x: jax.Array, residual: jax.Array, weight: jax.Array, eps: float, *, soon: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.rms_norm_residual."""
    size = x.shape[-1]
    if size > _MAX_SIZE:
        raise NotImplementedError(f"vectors of {size} are over {_MAX_SIZE}")
    padded = triton.next_power_of_2(size)
    rows = math.prod(x.shape[:-1])
    warps = min(16, max(1, padded // 512))
    fetched, extra = fetching("rms_norm_residual", rows, soon, instead=x)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    normed, total = jax_triton.triton_call(
        x,
        residual,
        weight,
        fetched,
        kernel=_rms_norm_residual_kernel,
        out_type=(like, like),
        grid=(rows + extra["FETCHERS"],),
        name="rms_norm_residual",
        num_warps=warps,
        SIZE=size,
        SIZE_PAD=padded,
        EPS=eps,
        WARPS=warps,
        **extra,
    )
    return normed, total


@triton.jit
def _rms_norm_residual_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    soon_ptr,
    normed_ptr,
    total_ptr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    EPS: tl.constexpr,
    FETCHERS: tl.constexpr,
    FETCH: tl.constexpr,
    WARPS: tl.constexpr,
):
    row = tl.program_id(0) - FETCHERS
    if row < 0:
        if FETCHERS > 0:
            fetch_share(soon_ptr, tl.program_id(0), FETCHERS, FETCH, 32 * WARPS)
        return
    place = tl.arange(0, SIZE_PAD)
    mask = place < SIZE
    first = row.to(tl.int64) * SIZE
    weight = tl.load(weight_ptr + place, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + first + place, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + first + place, mask=mask, other=0.0).to(tl.float32)
    total = (residual + x).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + first + place, total, mask=mask)
    wide = total.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide) / SIZE + EPS)
    tl.store(normed_ptr + first + place, (wide * inverse * weight).to(normed_ptr.dtype.element_ty), mask=mask)
