"""Token and learned position embeddings."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.parameter import Dtype, Normal, Parameter, matmul


class Embed(nnx.Module):
    """A table [rows, E] looked up by id. Ids out of range are clamped, as padding needs no row of its own."""

    def __init__(self, rows: int, size: int, dtype: Dtype, *, axis: str = "vocab", std: float = 0.02):
        self.table = Parameter((rows, size), dtype, axes=(axis, "embed"), init=Normal(std))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [T] int32 -> [T, E]."""
        return self.table[...].at[ids].get(mode="clip")

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The tied head: hidden [..., E] -> [..., rows] float32."""
        return matmul(hidden, self.table[...], jnp.float32, transposed=True)
