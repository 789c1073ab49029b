"""softmax_top_k in plain XLA."""

import jax
import jax.numpy as jnp


def softmax_top_k(
    logits: jax.Array, real: jax.Array | None, *, top_k: int, norm: float | None, least: float, scale: float
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.softmax_top_k."""
    _, ids = jax.lax.top_k(logits, top_k)
    weights = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), ids, axis=-1)
    if norm is not None:
        weights /= jnp.maximum(jnp.linalg.norm(weights, ord=norm, axis=-1, keepdims=True), least)
    weights *= scale
    if real is None:
        return ids, weights
    return jnp.where(real[:, None], ids, -1), jnp.where(real[:, None], weights, 0.0)
