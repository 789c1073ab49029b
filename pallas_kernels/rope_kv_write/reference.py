"""rope_kv_write as its parts."""

import jax

from pallas_kernels.kv_write.reference import kv_write
from pallas_kernels.rope.reference import rope


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
    return rope(q, cos, sin), *kv_write(k_pages, v_pages, rope(k, cos, sin), v, index)
