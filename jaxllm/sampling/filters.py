"""Which tokens may be drawn: min-p, then top-k, then top-p.

Tokens of equal logits stand or fall together, so that the kept set is a property of the logits and not of an
ordering: where a sort would cut through a tie, all its tokens are kept.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.sampling_threshold import sampling_threshold


def keep(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """The tokens that may be drawn, [B, V] bool.

    min-p keeps p >= min_p * max(p). top-k keeps what is not below the k-th largest of those. top-p keeps the
    smallest set of the most likely of those whose share of their mass reaches top_p.

    Args:
        logits: [B, V] float32, divided by the temperature; -inf is never kept.
        top_k: [B] int32; 0 keeps all.
        top_p: [B] float32 in (0, 1]; 1 keeps all.
        min_p: [B] float32 in [0, 1]; 0 keeps all.
    """
    lowest = sampling_threshold(logits, top_k, top_p, min_p)
    return (logits >= lowest[:, None]) & (logits > -jnp.inf)
