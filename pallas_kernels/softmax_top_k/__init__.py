"""Routing of a mixture of experts by softmax: each token's most probable experts and their weights."""

import jax

from pallas_kernels import choose


def softmax_top_k(
    logits: jax.Array,
    real: jax.Array | None = None,
    *,
    top_k: int,
    norm: float | None = 1.0,
    least: float = 0.0,
    scale: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """The top_k largest logits of each token, the largest first, weighted by the softmax over all of them.

    logits: [T, X] float32; real: [T] bool, the tokens that are no padding; None for all. norm: p of the norm that a
    token's weights are divided by, `least` at the least; None leaves them. scale: what they are multiplied by then.

    Returns ids [T, K] int32, the lower of equals first, and weights [T, K] float32; id -1 and weight 0 for padding,
    whatever its logits are.
    """
    tokens, experts = logits.shape
    if not 0 < top_k <= experts:
        raise ValueError(f"softmax_top_k: top_k={top_k} must be from 1 to the {experts} experts")
    if logits.dtype != "float32" or (real is not None and real.shape != (tokens,)):
        raise ValueError(f"softmax_top_k: logits {logits.dtype} must be float32, and real [{tokens}]")
    result: tuple[jax.Array, jax.Array] = choose.run(
        "softmax_top_k", ("triton", "reference"), logits, real, top_k=top_k, norm=norm, least=least, scale=scale
    )
    return result
