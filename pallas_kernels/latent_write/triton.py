# mypy: disallow-untyped-defs=False
"""latent_write in Triton: a program per token, in place."""

import jax
import jax_triton
import triton
import triton.language as tl


def latent_write(latent_pages: jax.Array, latents: jax.Array, index: jax.Array) -> jax.Array:
    """See pallas_kernels.latent_write."""
    tokens, width = latents.shape
    pages_ref = jax.new_ref(latent_pages)
    jax_triton.triton_call(
        pages_ref,
        latents,
        index,
        kernel=_latent_write_kernel,
        out_type=(),
        grid=(tokens,),
        name="latent_write",
        num_warps=4,
        SIZE=width,
        SIZE_PAD=triton.next_power_of_2(width),
    )
    return jax.freeze(pages_ref)


@triton.jit
def _latent_write_kernel(pages_ptr, latents_ptr, index_ptr, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr):
    token = tl.program_id(0)
    slot = tl.load(index_ptr + token).to(tl.int64)
    place = tl.arange(0, SIZE_PAD)
    mask = place < SIZE
    latent = tl.load(latents_ptr + token * SIZE + place, mask=mask)
    tl.store(pages_ptr + slot * SIZE + place, latent.to(pages_ptr.dtype.element_ty), mask=mask)
