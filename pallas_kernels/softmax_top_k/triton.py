# mypy: disallow-untyped-defs=False
"""softmax_top_k in Triton: a few tokens a program, all of their logits in registers, top_k times the largest left."""

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

_MAX_EXPERTS = 1024
_ELEMENTS = 1024  # logits of a program: one token a warp at 256 experts


def softmax_top_k(
    logits: jax.Array, real: jax.Array | None, *, top_k: int, norm: float | None, least: float, scale: float
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.softmax_top_k."""
    tokens, experts = logits.shape
    if experts > _MAX_EXPERTS:
        raise NotImplementedError(f"{experts} experts are over {_MAX_EXPERTS}")
    if norm not in (None, 1, 2):
        raise NotImplementedError(f"weights divided by their {norm}-norm")
    width = triton.next_power_of_2(experts)
    rows = min(32, max(1, _ELEMENTS // width))
    ids, weights = jax_triton.triton_call(
        logits,
        logits if real is None else real.astype(jnp.int32),  # always an operand: what is not given is not read
        kernel=_softmax_top_k_kernel,
        out_type=(
            jax.ShapeDtypeStruct((tokens, top_k), jnp.int32),
            jax.ShapeDtypeStruct((tokens, top_k), jnp.float32),
        ),
        grid=(-(-tokens // rows),),
        name="softmax_top_k",
        num_warps=4,
        LAST=(tokens - 1) % rows + 1,
        EXPERTS=experts,
        WIDTH=width,
        ROWS=rows,
        TOP_K=top_k,
        TOP_K_PAD=triton.next_power_of_2(top_k),
        NORM=int(norm or 0),
        LEAST=least,
        SCALE=scale,
        PADDED=real is not None,
    )
    return ids, weights


@triton.jit
def _softmax_top_k_kernel(
    logits_ptr,
    real_ptr,
    ids_ptr,
    weights_ptr,
    LAST: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PAD: tl.constexpr,
    NORM: tl.constexpr,
    LEAST: tl.constexpr,
    SCALE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """ROWS tokens, LAST of them in the last program: compiled for no number of tokens. Padding is not read."""
    tokens = (tl.num_programs(0) - 1) * ROWS + LAST
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = token < tokens
    if PADDED:
        real = tl.load(real_ptr + token, mask=real, other=0) != 0
    expert = tl.arange(0, WIDTH)
    place = tl.arange(0, TOP_K_PAD)
    known = (expert < EXPERTS)[None, :]
    logits = tl.load(logits_ptr + token[:, None] * EXPERTS + expert[None, :], mask=real[:, None] & known, other=0.0)
    logits = tl.where(known, logits, float("-inf"))
    highest = tl.max(logits, 1)
    total = tl.sum(tl.exp(logits - highest[:, None]), 1)
    ids = tl.full([ROWS, TOP_K_PAD], -1, tl.int32)
    weights = tl.zeros([ROWS, TOP_K_PAD], tl.float32)
    for k in tl.static_range(TOP_K):
        best, index = tl.max(logits, 1, return_indices=True, return_indices_tie_break_left=True)
        here = (place == k)[None, :]
        ids = tl.where(here, index[:, None], ids)
        weights = tl.where(here, (tl.exp(best - highest) / total)[:, None], weights)
        logits = tl.where(expert[None, :] == index[:, None], float("-inf"), logits)
    if NORM > 0:
        size = tl.sum(weights, 1) if NORM == 1 else tl.sqrt(tl.sum(weights * weights, 1))
        weights = weights / tl.maximum(size, LEAST)[:, None]
    real = real[:, None]
    inside = (token < tokens)[:, None] & (place < TOP_K)[None, :]
    offsets = token[:, None] * TOP_K + place[None, :]
    tl.store(ids_ptr + offsets, tl.where(real, ids, -1), mask=inside)
    tl.store(weights_ptr + offsets, tl.where(real, weights * SCALE, 0.0), mask=inside)
