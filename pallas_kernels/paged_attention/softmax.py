# mypy: disallow-untyped-defs=False
"""What the attention kernels share of arithmetic: scores and their online softmax, in powers of two."""

import triton
import triton.language as tl


@triton.jit
def per_head(ptr, heads, mask, GIVEN: tl.constexpr):
    """Each query's slope or sink, in powers of two as the scores are; something unused unless GIVEN."""
    if GIVEN:
        numbers = tl.load(ptr + heads, mask=mask, other=0.0) * 1.4426950408889634
    else:
        numbers = tl.zeros(heads.shape, tl.float32)
    return numbers


@triton.jit
def start_softmax(sinks, GIVEN: tl.constexpr):
    """The highest score and the total of weights before any key: of the sink, if GIVEN."""
    if GIVEN:
        top = sinks
        total = tl.full(sinks.shape, 1.0, tl.float32)
    else:
        # A finite lowest score: a query that sees nothing keeps total 0 instead of inf - inf.
        top = tl.full(sinks.shape, -1e30, tl.float32)
        total = tl.zeros(sinks.shape, tl.float32)
    return top, total


@triton.jit
def scale_scores(scores, SCALE: tl.constexpr, SOFT_CAP: tl.constexpr):
    """Products q.k scaled, and capped if SOFT_CAP; log2(e) sits in SCALE."""
    if SOFT_CAP > 0.0:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1)
        bounded = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * SCALE / SOFT_CAP)) + 1.0)
        scores = bounded * (SOFT_CAP * 1.4426950408889634)
    else:
        scores *= SCALE
    return scores


@triton.jit
def add_bias(scores, table, offset, least, most, SIZE: tl.constexpr):
    """scores: [M, N]; table: [M], where the SIZE numbers of each query's head begin; offset: [M, N], least to most.

    A block whose offsets all lie beyond one end of the table takes one number a head: most blocks of a long row do.
    """
    if most <= 0:
        scores += (tl.load(table) * 1.4426950408889634)[:, None]
    elif least >= SIZE - 1:
        scores += (tl.load(table + (SIZE - 1)) * 1.4426950408889634)[:, None]
    else:
        offset = tl.minimum(tl.maximum(offset, 0), SIZE - 1)
        scores += tl.load(table[:, None] + offset) * 1.4426950408889634
    return scores


@triton.jit
def weigh(top, total, scores, LATE_SCALE: tl.constexpr):
    """One turn of the online softmax: the highest score and the total of weights [M] after scores [M, N] more.

    LATE_SCALE: of scores that nothing else is done to, applied within the exponent, one multiply-add each.
    Returns with them the scores' weights [M, N], and what all that was summed before is to be multiplied by [M].
    """
    higher = tl.maximum(top, tl.max(scores, 1) * LATE_SCALE)
    weights = tl.exp2(scores * LATE_SCALE - higher[:, None])
    shrink = tl.exp2(top - higher)
    return higher, total * shrink + tl.sum(weights, 1), weights, shrink


@triton.jit
def add_keys(state, scores, v, LATE_SCALE: tl.constexpr, PRECISION: tl.constexpr):
    """State (top [M], total [M], out [M, D]) after keys more, with values [N, D]."""
    top, total, out = state
    top, total, weights, shrink = weigh(top, total, scores, LATE_SCALE)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    return top, total, out
