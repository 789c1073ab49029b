# mypy: disallow-untyped-defs=False
"""rope_kv_write in Triton: a token's query heads in blocks, and one program for its keys and values."""

import jax
import jax_triton
import triton
import triton.language as tl

_HEADS_AT_ONCE = 32


def rope_kv_write(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See pallas_kernels.rope_kv_write."""
    tokens, heads, dim = q.shape
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    block = min(_HEADS_AT_ONCE, triton.next_power_of_2(heads))
    out = jax_triton.triton_call(
        q,
        k,
        v,
        cos,
        sin,
        index,
        k_ref,
        v_ref,
        kernel=_kernel,
        out_type=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(tokens, -(-heads // block) + 1),
        name="rope_kv_write",
        num_warps=4,
        HEADS=heads,
        BLOCK=block,
        KV_HEADS=k.shape[1],
        KV_PAD=triton.next_power_of_2(k.shape[1]),
        HALF=dim // 2,
        HALF_PAD=triton.next_power_of_2(dim // 2),
    )
    return out, jax.freeze(k_ref), jax.freeze(v_ref)


@triton.jit
def _rotate(from_ptr, to_ptr, first, cos, sin, HEADS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """Heads first : first + BLOCK of one token; cos and sin: [HALF padded]."""
    head = first + tl.arange(0, BLOCK)
    pair = tl.arange(0, cos.shape[0])
    mask = (head < HEADS)[:, None] & (pair < HALF)[None, :]
    place = head[:, None] * (2 * HALF) + pair[None, :]
    one = tl.load(from_ptr + place, mask=mask).to(tl.float32)
    two = tl.load(from_ptr + place + HALF, mask=mask).to(tl.float32)
    to = to_ptr.dtype.element_ty
    tl.store(to_ptr + place, (one * cos[None, :] - two * sin[None, :]).to(to), mask=mask)
    tl.store(to_ptr + place + HALF, (two * cos[None, :] + one * sin[None, :]).to(to), mask=mask)


@triton.jit
def _kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cos_ptr,
    sin_ptr,
    index_ptr,
    k_pages_ptr,
    v_pages_ptr,
    out_ptr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KV_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
):
    token = tl.program_id(0)
    part = tl.program_id(1)
    pair = tl.arange(0, HALF_PAD)
    cos = tl.load(cos_ptr + token * HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    if part > 0:
        place = token * (HEADS * 2 * HALF)
        _rotate(q_ptr + place, out_ptr + place, (part - 1) * BLOCK, cos, sin, HEADS, BLOCK, HALF)
    else:
        slot = tl.load(index_ptr + token).to(tl.int64) * (KV_HEADS * 2 * HALF)
        place = token * (KV_HEADS * 2 * HALF)
        _rotate(k_ptr + place, k_pages_ptr + slot, 0, cos, sin, KV_HEADS, KV_PAD, HALF)
        inner = tl.arange(0, KV_PAD * 2 * HALF_PAD)
        mask = inner < KV_HEADS * 2 * HALF
        v = tl.load(v_ptr + place + inner, mask=mask)
        tl.store(v_pages_ptr + slot + inner, v.to(v_pages_ptr.dtype.element_ty), mask=mask)
