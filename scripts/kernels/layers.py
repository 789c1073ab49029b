"""A decode step's layers to time: what kernels do for the matmuls beside them shows here alone."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.timing import Timing, normal
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.rms_norm_residual import rms_norm_residual

_LAYERS = 4  # distinct ones, so that their weights come from memory
_PAGE, _DIM = 64, 128


@dataclass(frozen=True)
class Layers(Timing):
    """Dense layers like Llama's, of `rows` rows with `context` tokens each; a call is _LAYERS of them."""

    rows: int
    context: int
    hidden: int = 4096
    inner: int = 14336
    heads: int = 32
    kv_heads: int = 8

    @property
    def bytes(self) -> int:
        """Weights, keys and values."""
        mixing = (2 * self.heads + 2 * self.kv_heads) * _DIM
        cache = 2 * self.rows * self.context * self.kv_heads * _DIM
        return 2 * _LAYERS * (self.hidden * (mixing + 3 * self.inner) + cache)

    @property
    def flops(self) -> int:
        """The matmuls' multiply-adds."""
        mixing = (2 * self.heads + 2 * self.kv_heads) * _DIM
        return 2 * _LAYERS * self.rows * self.hidden * (mixing + 3 * self.inner)

    @functools.cached_property
    def arguments(self) -> list[Any]:
        """The stream and the pools, which go from call to call; weights, norms, angles, places."""
        pages = -(-self.context // _PAGE)
        order = 1 + np.random.default_rng(0).permutation(self.rows * pages).reshape(self.rows, pages)
        index = order[:, -1] * _PAGE + (self.context - 1) % _PAGE
        pool = (1 + order.size, _PAGE, self.kv_heads, _DIM)
        stream = (*normal([(self.rows, self.hidden)] * 2), *normal([pool] * (2 * _LAYERS)))
        shapes = [
            (self.hidden, (self.heads + 2 * self.kv_heads) * _DIM),
            (self.heads * _DIM, self.hidden),
            (self.hidden, 2 * self.inner),
            (self.inner, self.hidden),
        ]
        weights = tuple(tuple(normal(shapes, 0.02)) for _ in range(_LAYERS))
        angles = tuple(x.astype(jnp.float32) for x in normal([(self.rows, _DIM // 2)] * 2, 0.7))
        places = tuple(jnp.asarray(x, jnp.int32) for x in (index, order, np.full(self.rows, self.context)))
        return [stream, weights, jnp.ones((self.hidden,), jnp.bfloat16), angles, places]

    def call(self, stream: Any, weights: Any, norm: Any, angles: Any, places: Any) -> Any:
        """The layers one after the other."""
        x, residual, *pools = stream
        for layer, (qkv, out, gate_up, down) in enumerate(weights):
            normed, residual = rms_norm_residual(x, residual, norm, 1e-5)
            heads = (normed @ qkv).reshape(self.rows, -1, _DIM)
            k, v = pools[2 * layer : 2 * layer + 2]
            mixed, *pools[2 * layer : 2 * layer + 2] = decode_attention(heads, *angles, k, v, *places, scale=_DIM**-0.5)
            mixed = mixed.reshape(self.rows, -1) @ out
            normed, residual = rms_norm_residual(mixed, residual, norm, 1e-5)
            gate, up = jnp.split(normed @ gate_up, 2, axis=-1)
            x = (jax.nn.silu(gate.astype(jnp.float32)).astype(x.dtype) * up) @ down
        return (x, residual, *pools)


LAYERS = (
    Layers("4 layers, 1 row, context 256", 64, 1, 256),
    Layers("4 layers, 8 rows, context 1,088", 64, 8, 1088),
    Layers("4 layers, 64 rows, context 256", 64, 64, 256),
    Layers("4 small layers, 1 row, context 256", 64, 1, 256, 1024, 3072, 16),
    Layers("4 small layers, 64 rows, context 256", 64, 64, 256, 1024, 3072, 16),
)
