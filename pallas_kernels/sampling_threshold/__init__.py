"""Where min-p, top-k and top-p cut a row of logits: each keeps what is not below some logit, so one number says all."""

import jax

from pallas_kernels import choose


def sampling_threshold(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """The lowest logit of each row that may be drawn, [B] float32; -inf for a row that nothing filters.

    min-p keeps p >= min_p * max(p). top-k keeps what is not below the k-th largest of those. top-p keeps the
    smallest set of the most likely of those whose share of their mass reaches top_p. Equal logits stay together.

    logits: [B, V] float32, divided by the temperature; -inf is never kept, and something of each row has to be more.
    top_k: [B] int32, 0 keeps all. top_p: [B] float32 in (0, 1], 1 keeps all. min_p: [B] float32 in [0, 1], 0 keeps all.
    """
    given = [(x.dtype.name, x.shape) for x in (logits, top_k, top_p, min_p)]
    rows = logits.shape[:1]
    if given != [("float32", logits.shape), ("int32", rows), ("float32", rows), ("float32", rows)] or logits.ndim != 2:
        raise ValueError(
            f"sampling_threshold: logits, top_k, top_p, min_p are {given}: they must be float32 [B, V],"
            " int32 [B], float32 [B] and float32 [B]"
        )
    result: jax.Array = choose.run("sampling_threshold", ("triton", "reference"), logits, top_k, top_p, min_p)
    return result
