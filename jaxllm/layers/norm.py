"""Normalisation over the last axis, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.parameter import Constant, Dtype, Parameter, broadcast
from pallas_kernels.rms_norm import rms_norm


class RMSNorm(nnx.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        self.eps = eps
        self.weight = Parameter((size,), dtype, axes=("norm",), init=Constant(1.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., E] -> [..., E]."""
        return rms_norm(x, self.weight[...], self.eps)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / std(x) * weight + bias (Ba, Kiros and Hinton 2016)."""

    def __init__(self, size: int, eps: float, dtype: Dtype):
        self.eps = eps
        self.weight = Parameter((size,), dtype, axes=("norm",), init=Constant(1.0))
        self.bias = Parameter((size,), dtype, axes=("norm",), init=Constant(0.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., E] -> [..., E]."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + self.eps)
        weight, bias = (broadcast(p[...].astype(jnp.float32), x) for p in (self.weight, self.bias))
        return (centred * inverse * weight + bias).astype(x.dtype)
