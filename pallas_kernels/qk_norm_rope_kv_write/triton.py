# mypy: disallow-untyped-defs=False
"""qk_norm_rope_kv_write in Triton: a token's query heads in blocks, and one program for its keys and values."""

import jax
import jax_triton
import triton
import triton.language as tl

_HEADS_AT_ONCE = 32


def qk_norm_rope_kv_write(
    qkv: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    *,
    q_weight: jax.Array | None,
    k_weight: jax.Array | None,
    eps: float,
    interleaved: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See pallas_kernels.qk_norm_rope_kv_write."""
    tokens, heads, dim = qkv.shape
    kv_heads = k_pages.shape[2]
    heads -= 2 * kv_heads
    # A head is three parts: what turns, what it turns with, and the rest.
    half = 0 if cos is None else cos.shape[1]
    k_ref, v_ref = jax.new_ref(k_pages), jax.new_ref(v_pages)
    block = min(_HEADS_AT_ONCE, triton.next_power_of_2(heads))
    out = jax_triton.triton_call(
        qkv,
        # Always operands: what is not given is not read.
        *(qkv if x is None else x for x in (cos, sin, q_weight, k_weight)),
        index,
        k_ref,
        v_ref,
        kernel=_qk_norm_rope_kv_write_kernel,
        out_type=jax.ShapeDtypeStruct((tokens, heads, dim), qkv.dtype),
        grid=(tokens, -(-heads // block) + 1),
        name="qk_norm_rope_kv_write",
        num_warps=4,
        HEADS=heads,
        BLOCK=block,
        KV_HEADS=kv_heads,
        KV_PAD=triton.next_power_of_2(kv_heads),
        HALF=half,
        HALF_PAD=triton.next_power_of_2(max(1, half)),
        REST=dim - 2 * half,
        REST_PAD=triton.next_power_of_2(max(1, dim - 2 * half)),
        V_SIZE=kv_heads * dim,
        V_PAD=triton.next_power_of_2(kv_heads * dim),
        Q_NORM=q_weight is not None,
        K_NORM=k_weight is not None,
        EPS=eps,
        INTERLEAVED=interleaved,
    )
    return out, jax.freeze(k_ref), jax.freeze(v_ref)


@triton.jit
def _qk_norm_rope_kv_write_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_weight_ptr,
    k_weight_ptr,
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
    REST: tl.constexpr,
    REST_PAD: tl.constexpr,
    V_SIZE: tl.constexpr,
    V_PAD: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    EPS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    dim: tl.constexpr = 2 * HALF + REST
    qkv_ptr += token * ((HEADS + 2 * KV_HEADS) * dim)
    if part > 0:
        _heads(
            qkv_ptr, out_ptr + token * (HEADS * dim), q_weight_ptr, cos_ptr, sin_ptr, token, (part - 1) * BLOCK,
            HEADS, BLOCK, HALF, HALF_PAD, REST, REST_PAD, Q_NORM, EPS, INTERLEAVED,
        )  # fmt: skip
    else:
        slot = tl.load(index_ptr + token).to(tl.int64)
        _heads(
            qkv_ptr + HEADS * dim, k_pages_ptr + slot * V_SIZE, k_weight_ptr, cos_ptr, sin_ptr, token, 0,
            KV_HEADS, KV_PAD, HALF, HALF_PAD, REST, REST_PAD, K_NORM, EPS, INTERLEAVED,
        )  # fmt: skip
        inner = tl.arange(0, V_PAD)
        v = tl.load(qkv_ptr + (HEADS + KV_HEADS) * dim + inner, mask=inner < V_SIZE)
        tl.store(v_pages_ptr + slot * V_SIZE + inner, v.to(v_pages_ptr.dtype.element_ty), mask=inner < V_SIZE)


@triton.jit
def _heads(
    from_ptr,
    to_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    token,
    first,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST: tl.constexpr,
    REST_PAD: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Heads first : first + BLOCK of one token."""
    DIM: tl.constexpr = 2 * HALF + REST
    to = to_ptr.dtype.element_ty
    kept = from_ptr.dtype.element_ty
    head = first + tl.arange(0, BLOCK)
    pair = tl.arange(0, HALF_PAD)
    rest = 2 * HALF + tl.arange(0, REST_PAD)
    if INTERLEAVED:
        one_of, two_of = 2 * pair, 2 * pair + 1
    else:
        one_of, two_of = pair, pair + HALF
    base = head[:, None] * DIM
    turns = (head < HEADS)[:, None] & (pair < HALF)[None, :]
    stays = (head < HEADS)[:, None] & (rest < DIM)[None, :]
    squares = tl.zeros([BLOCK], tl.float32)
    if HALF > 0:
        cos = tl.load(cos_ptr + token * HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + token * HALF + pair, mask=pair < HALF, other=0.0).to(tl.float32)
        one = tl.load(from_ptr + base + one_of[None, :], mask=turns, other=0.0).to(tl.float32)
        two = tl.load(from_ptr + base + two_of[None, :], mask=turns, other=0.0).to(tl.float32)
        squares += tl.sum(one * one + two * two, 1)
    if REST > 0:
        other = tl.load(from_ptr + base + rest[None, :], mask=stays, other=0.0).to(tl.float32)
        squares += tl.sum(other * other, 1)
    if NORM:
        inverse = tl.rsqrt(squares / DIM + EPS)[:, None]
    if HALF > 0:
        if NORM:
            one_weight = tl.load(weight_ptr + one_of, mask=pair < HALF, other=0.0).to(tl.float32)
            two_weight = tl.load(weight_ptr + two_of, mask=pair < HALF, other=0.0).to(tl.float32)
            one = (one * inverse * one_weight[None, :]).to(kept).to(tl.float32)
            two = (two * inverse * two_weight[None, :]).to(kept).to(tl.float32)
        turned = one * cos[None, :] - two * sin[None, :]
        tl.store(to_ptr + base + one_of[None, :], turned.to(kept).to(to), mask=turns)
        turned = two * cos[None, :] + one * sin[None, :]
        tl.store(to_ptr + base + two_of[None, :], turned.to(kept).to(to), mask=turns)
    if REST > 0:
        if NORM:
            weight = tl.load(weight_ptr + rest, mask=rest < DIM, other=0.0).to(tl.float32)
            other = other * inverse * weight[None, :]
        tl.store(to_ptr + base + rest[None, :], other.to(kept).to(to), mask=stays)
