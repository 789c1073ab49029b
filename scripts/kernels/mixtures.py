"""Mixtures of experts to time, from one token to a prefill."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from kernels.timing import Timing, normal
from pallas_kernels.moe import moe
from pallas_kernels.softmax_top_k import softmax_top_k


@dataclass(frozen=True)
class Mixture(Timing):
    """A mixture of experts with its router, of Qwen3-30B-A3B's shape; tokens choose almost evenly."""

    tokens: int

    experts, top_k, size, inner = 128, 8, 2048, 768

    @property
    def bytes(self) -> int:
        """The weights of the experts that even choices reach on average, the router's, the tokens and the result."""
        reached = self.experts * (1 - (1 - self.top_k / self.experts) ** self.tokens)
        weights = round(reached * 3 * self.size * self.inner) + self.size * self.experts
        return 2 * (weights + 2 * self.tokens * self.size)

    @property
    def flops(self) -> int:
        """The multiply-adds of the router and of every token's experts."""
        return 2 * self.tokens * self.size * (self.experts + 3 * self.top_k * self.inner)

    @functools.cached_property
    def arguments(self) -> list[jax.Array]:
        """Matrices keep to the tokens' magnitude, so that a chain does."""
        matrices = [(self.size, self.experts), (self.experts, self.size, 2 * self.inner)]
        matrices.append((self.experts, self.inner, self.size))
        return [*normal([(self.tokens, self.size)]), *normal(matrices, scale=1 / 64)]

    def call(self, *operands: jax.Array) -> jax.Array:
        """As a layer has it, with the residual."""
        x, router, gate_up, down = operands
        logits = jnp.dot(x, router, preferred_element_type=jnp.float32)
        return x + moe(x, gate_up, down, *softmax_top_k(logits, top_k=self.top_k)) * jnp.bfloat16(2**-6)


MIXTURES = tuple(
    Mixture(f"moe 128 experts, top 8, {tokens} tokens", repeats, tokens)
    for tokens, repeats in ((1, 100), (8, 50), (64, 20), (256, 20), (8192, 5))
)
