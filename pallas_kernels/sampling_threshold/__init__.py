"""Where min-p, top-k and top-p cut a row of logits: each keeps what is not below some logit, so one number says all."""

import jax

from pallas_kernels import choose

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow. What is greedy is not filtered."""


def sampling_threshold(
    logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array
) -> jax.Array:
    """The lowest logit of each row that may be drawn, [B] float32; -inf for a row that nothing filters.

    Of the softmax p of logits / temperature, min-p keeps p >= min_p * max(p). top-k keeps what is not below the k-th
    largest of those. top-p keeps the smallest set of the most likely of those whose share of their mass reaches top_p.
    Equal logits stay together.

    logits: [B, V] float32; -inf is never kept, and something of each row has to be more. temperature: [B] float32.
    top_k: [B] int32, 0 keeps all. top_p: [B] float32 in (0, 1], 1 keeps all. min_p: [B] float32 in [0, 1], 0 keeps all.
    """
    operands = (logits, temperature, top_k, top_p, min_p)
    given = [(x.dtype.name, x.shape) for x in operands]
    rows = logits.shape[:1]
    floats = ("float32", rows)
    if given != [("float32", logits.shape), floats, ("int32", rows), floats, floats] or logits.ndim != 2:
        raise ValueError(
            f"sampling_threshold: logits, temperature, top_k, top_p, min_p are {given}: they must be float32 [B, V],"
            " float32 [B], int32 [B], float32 [B] and float32 [B]"
        )
    result: jax.Array = choose.run("sampling_threshold", ("triton", "reference"), *operands)
    return result
