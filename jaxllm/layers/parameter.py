"""A parameter and its one declaration: shape, logical axes, type, initialisation, checkpoint parts.

A model is built of parameters that hold a jax.ShapeDtypeStruct; nothing is allocated until the weights room
fills them with arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Dtype = Any
"""Whatever jnp.dtype accepts."""


Shape = tuple[int, ...]
Init = Callable[[jax.Array, Shape, Dtype], jax.Array]
"""Called with (key, shape, dtype) for weights that come from no checkpoint; hashable."""


@dataclass(frozen=True)
class Normal:
    """Initialise from a normal distribution around 0."""

    std: float = 0.02

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(self.std, dtype)


@dataclass(frozen=True)
class Constant:
    """Initialise with one value."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
        return jnp.full(shape, self.value, dtype)


class Parameter(nnx.Param):
    """A leaf of a model's weights. Any leaf that has `matmul(x)` may stand in a Linear's place for one.

    Attributes:
        axes: the logical name of each axis: embed, vocab, qkv, heads, mlp, norm, position, experts.
        init: see Init.
        parts: sizes along the last axis of the checkpoint tensors that fuse into this parameter, in order;
            empty when it is one tensor.
    """

    axes: tuple[str, ...]
    init: Init
    parts: tuple[int, ...]

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Dtype,
        *,
        axes: tuple[str, ...],
        init: Init,
        parts: tuple[int, ...] = (),
    ):
        assert len(axes) == len(shape)
        assert not parts or sum(parts) == shape[-1]
        super().__init__(
            jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
            axes=axes,
            init=init,
            parts=parts if len(parts) > 1 else (),
        )

    def matmul(self, x: jax.Array, dtype: Dtype = None) -> jax.Array:
        """x [..., in] @ self [in, out] -> [..., out], accumulated in float32, in `dtype` or x's own."""
        return matmul(x, self[...], dtype)


def matmul(x: jax.Array, kernel: jax.Array, dtype: Dtype = None, *, transposed: bool = False) -> jax.Array:
    """x [..., in] times kernel [in, out] (or [out, in] when transposed), in `dtype` or x's own.

    Half-precision products are accumulated in float32, whatever type they are returned in. Float32 operands are
    multiplied as float32: GPUs would otherwise round them to TF32.
    """
    contract = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out_dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    return jax.lax.dot_general(x, kernel, contract, precision=precision, preferred_element_type=out_dtype)


def broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:
    """vector [E] as an array of `like`'s rank whose leading axes are 1."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


@dataclass(frozen=True)
class Layout:
    """How a checkpoint stores a tensor that we hold otherwise.

    stored: the tensor's shape in the checkpoint, given ours. restore: what is stored and our shape -> the tensor as
    we hold it.
    """

    stored: Callable[[Shape], Shape]
    restore: Callable[[jax.Array, Shape], jax.Array]


PLAIN = Layout(lambda shape: shape, lambda tensor, shape: tensor)
TRANSPOSED = Layout(
    lambda shape: (*shape[:-2], shape[-1], shape[-2]), lambda tensor, shape: jnp.swapaxes(tensor, -1, -2)
)


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: checkpoint tensors, in the order of the parameter's parts.

    names: the first `*` stands for the layer's index. A second says that the checkpoint has a tensor for each index
    of the parameter's first axis, its experts.
    """

    names: tuple[str, ...]
    layout: Layout = PLAIN

    @classmethod
    def of(cls, *names: str) -> "Source":
        """Tensors stored as we store them."""
        return cls(names)

    @classmethod
    def linear(cls, *names: str) -> "Source":
        """Weights of torch.nn.Linear, stored [out, in] where we have [in, out]."""
        return cls(names, TRANSPOSED)


def linear_rows(ours: str, *theirs: str) -> dict[str, Source]:
    """The rows of a Linear and the torch.nn.Linear it is made of: kernel, and bias where it has one."""
    return {
        f"{ours}.kernel": Source.linear(*(f"{name}.weight" for name in theirs)),
        f"{ours}.bias": Source.of(*(f"{name}.bias" for name in theirs)),
    }


def norm_rows(ours: str, theirs: str) -> dict[str, Source]:
    """The rows of a norm: weight, and bias where it has one."""
    return {f"{ours}.{part}": Source.of(f"{theirs}.{part}") for part in ("weight", "bias")}


def parameters(model: nnx.Module) -> dict[str, Parameter]:
    """Every parameter of the model by its dotted path, e.g. layers.0.attention.qkv.kernel, in a fixed order."""
    return {
        ".".join(str(part) for part in path): leaf
        for path, leaf in nnx.iter_graph(model)
        if isinstance(leaf, Parameter)
    }


def count_parameters(model: nnx.Module) -> int:
    """How many numbers the model's parameters hold."""
    return sum(leaf.size for leaf in parameters(model).values())
