"""A linear map, possibly of several outputs fused into one matmul."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.parameter import Constant, Dtype, Normal, Parameter, broadcast


class Linear(nnx.Module):
    """x [..., in] -> [..., out]. The kernel is [in, out], its matmul its own affair."""

    def __init__(
        self,
        in_size: int,
        out_sizes: int | Sequence[int],
        dtype: Dtype,
        *,
        axes: tuple[str, str],
        bias: bool = False,
        std: float = 0.02,
    ):
        """out_sizes: one size, or those of the outputs fused along the last axis; `split` takes them apart."""
        parts = (out_sizes,) if isinstance(out_sizes, int) else tuple(out_sizes)
        self.borders = tuple(itertools.accumulate(parts))[:-1]
        self.kernel = Parameter((in_size, sum(parts)), dtype, axes=axes, init=Normal(std), parts=parts)
        self.bias = Parameter((sum(parts),), dtype, axes=axes[1:], init=Constant(0.0), parts=parts) if bias else None

    def __call__(self, x: jax.Array, dtype: Dtype = None) -> jax.Array:
        """In `dtype`, or x's own."""
        if self.bias is None:
            return self.kernel.matmul(x, dtype)
        out = self.kernel.matmul(x, jnp.float32)
        bias = self.bias[...].astype(jnp.float32)
        return (out + broadcast(bias, out)).astype(x.dtype if dtype is None else dtype)

    def split(self, x: jax.Array) -> list[jax.Array]:
        """The fused outputs for x, one by one."""
        return jnp.split(self(x), self.borders, axis=-1)
