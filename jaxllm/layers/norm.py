"""Normalisation over the last axis, computed in float32."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.parameter import Constant, Dtype, Parameter, broadcast
from pallas_kernels.rms_norm import rms_norm
from pallas_kernels.rms_norm_residual import rms_norm_residual


class RMSNorm(nnx.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        self.eps = eps
        self.weight = Parameter((size,), dtype, axes=("norm",), init=Constant(1.0))

    @property
    def scale(self) -> jax.Array:
        """[E], what the normalised numbers are multiplied by."""
        return self.weight[...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., E] -> [..., E]."""
        return rms_norm(x, self.scale, self.eps)

    def add(self, x: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (self(residual + x), residual + x), all [..., E], in one kernel where there is one."""
        return rms_norm_residual(x, residual, self.scale, self.eps)


class UnitOffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + weight), the sum in float32 whatever type the weight has (Gemma)."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        super().__init__(size, eps, dtype)
        self.weight = Parameter((size,), dtype, axes=("norm",), init=Constant(0.0))

    @property
    def scale(self) -> jax.Array:
        """[E] float32."""
        return 1.0 + self.weight[...].astype(jnp.float32)


class WeightlessRMSNorm(RMSNorm):
    """x / rms(x)."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        self.size, self.eps = size, eps

    @property
    def scale(self) -> jax.Array:
        """[E] float32 ones."""
        return jnp.ones(self.size, jnp.float32)


class GroupRMSNorm(nnx.Module):
    """RMSNorm of each of several equal groups of channels for itself; one weight for all channels."""

    def __init__(self, size: int, groups: int, eps: float, dtype: Dtype):
        self.groups, self.eps = groups, eps
        self.weight = Parameter((size,), dtype, axes=("norm",), init=Constant(1.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, C] -> [T, C]."""
        if self.groups == 1:
            return rms_norm(x, self.weight[...], self.eps)
        wide = x.astype(jnp.float32).reshape(x.shape[0], self.groups, -1)
        wide = wide * jax.lax.rsqrt((wide * wide).mean(axis=-1, keepdims=True) + self.eps)
        return (wide.reshape(x.shape) * broadcast(self.weight[...].astype(jnp.float32), x)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / std(x) * weight + bias (Ba, Kiros and Hinton 2016); some families do without either."""

    offset: ClassVar[float] = 0.0

    def __init__(self, size: int, eps: float, dtype: Dtype, *, weight: bool = True, bias: bool = True):
        self.eps = eps
        self.weight = Parameter((size,), dtype, axes=("norm",), init=Constant(1.0 - self.offset)) if weight else None
        self.bias = Parameter((size,), dtype, axes=("norm",), init=Constant(0.0)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., E] -> [..., E]."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + self.eps)
        out = centred * inverse
        if self.weight is not None:
            out = out * broadcast(self.weight[...].astype(jnp.float32) + self.offset, x)
        if self.bias is not None:
            out = out + broadcast(self.bias[...].astype(jnp.float32), x)
        return out.astype(x.dtype)

    def add(self, x: jax.Array, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (self(residual + x), residual + x), all [..., E]."""
        total = residual + x
        return self(total), total


class BiaslessLayerNorm(LayerNorm):
    """(x - mean(x)) / std(x) * weight."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        super().__init__(size, eps, dtype, bias=False)


class UnitOffsetLayerNorm(LayerNorm):
    """(x - mean(x)) / std(x) * (1 + weight) + bias (Nemotron)."""

    offset = 1.0
