# mypy: disallow-untyped-defs=False
"""kv_write in Triton: both pools in one kernel, a program per token, in place."""

import jax
import jax_triton
import triton
import triton.language as tl


def kv_write(
    k_pages: jax.Array, v_pages: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.kv_write."""
    tokens, kv_heads, dim = k.shape
    if k.shape != v.shape:
        raise NotImplementedError(f"keys {k.shape} and values {v.shape} differ in shape")
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    jax_triton.triton_call(
        k_ref,
        v_ref,
        k,
        v,
        index,
        kernel=_kv_write_kernel,
        out_type=(),
        grid=(tokens,),
        name="kv_write",
        num_warps=4,
        SIZE=kv_heads * dim,
        SIZE_PAD=triton.next_power_of_2(kv_heads * dim),
    )
    return jax.freeze(k_ref), jax.freeze(v_ref)


@triton.jit
def _kv_write_kernel(k_pages_ptr, v_pages_ptr, k_ptr, v_ptr, index_ptr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr):
    token = tl.program_id(0)
    slot = tl.load(index_ptr + token).to(tl.int64)
    place = tl.arange(0, SIZE_PAD)
    mask = place < SIZE
    k = tl.load(k_ptr + token * SIZE + place, mask=mask)
    v = tl.load(v_ptr + token * SIZE + place, mask=mask)
    tl.store(k_pages_ptr + slot * SIZE + place, k.to(k_pages_ptr.dtype.element_ty), mask=mask)
    tl.store(v_pages_ptr + slot * SIZE + place, v.to(v_pages_ptr.dtype.element_ty), mask=mask)
