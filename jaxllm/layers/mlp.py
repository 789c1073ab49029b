"""Feed-forward blocks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.linear import Linear
from jaxllm.layers.parameter import Dtype

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_fast": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}
"""By the names that config.json files use."""


def activate(name: str, x: jax.Array) -> jax.Array:
    """The activation, computed in float32, which the fusion around it does anyway. x and result: [T, M]."""
    return ACTIVATIONS[name](x.astype(jnp.float32)).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020), gate and up in one matmul."""

    def __init__(self, size: int, inner: int, activation: str, dtype: Dtype, *, bias: bool, std: float, out_std: float):
        self.activation = activation
        self.gate_up = Linear(size, (inner, inner), dtype, axes=("embed", "mlp"), bias=bias, std=std)
        self.down = Linear(inner, size, dtype, axes=("mlp", "embed"), bias=bias, std=out_std)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, E] -> [T, E]."""
        gate, up = self.gate_up.split(x)
        return self.down(activate(self.activation, gate) * up)


class MLP(nnx.Module):
    """down(activation(up(x)))."""

    def __init__(self, size: int, inner: int, activation: str, dtype: Dtype, *, bias: bool, std: float, out_std: float):
        self.activation = activation
        self.up = Linear(size, inner, dtype, axes=("embed", "mlp"), bias=bias, std=std)
        self.down = Linear(inner, size, dtype, axes=("mlp", "embed"), bias=bias, std=out_std)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, E] -> [T, E]."""
        return self.down(activate(self.activation, self.up(x)))
