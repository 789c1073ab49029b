"""Operations with states to time: convolutions and scans, decodes and extends."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.timing import Timing, normal, starts
from pallas_kernels.causal_conv import causal_conv
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.ssd import ssd


@dataclass(frozen=True)
class Recurrent(Timing):
    """An operation with states, which its chain hands on with x: rows of so many tokens; those of more than 1 begin."""

    lengths: tuple[int, ...]
    decode: bool = False

    @property
    def tokens(self) -> int:
        """Those of all rows."""
        return sum(self.lengths)

    @property
    def states(self) -> int:
        """How many states have to be read or written."""
        return sum(1 if length > 1 else 2 for length in self.lengths)

    @property
    def rows(self) -> list[jax.Array]:
        """index, query_start, fresh."""
        lengths = np.array(self.lengths)
        index = 1 + np.arange(len(lengths), dtype=np.int32)
        return [*map(jnp.asarray, (index, starts(self.lengths), lengths > 1))]

    def state(self, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
        """A pool with an entry for every row."""
        return jnp.ones((len(self.lengths) + 1, *shape), dtype)

    def time_steps(self, *shape: int) -> jax.Array:
        """Of a tenth."""
        return jnp.full((self.tokens, *shape), 0.1, jnp.float32)


@dataclass(frozen=True)
class Convolution(Recurrent):
    """causal_conv of Mamba2-2.7B."""

    channels, taps = 5376, 4

    @property
    def bytes(self) -> int:
        """x, y and the states."""
        return 2 * self.channels * (2 * self.tokens + self.states * (self.taps - 1))

    @property
    def flops(self) -> int:
        """The multiply-adds, which no tensor core can do."""
        return 2 * self.tokens * self.channels * self.taps

    @functools.cached_property
    def arguments(self) -> list[Any]:
        """The call's operands."""
        x, weight, bias = normal([(self.tokens, self.channels), (self.channels, self.taps), (self.channels,)])
        return [(x, self.state(self.channels, self.taps - 1, dtype=jnp.bfloat16)), weight, bias, *self.rows]

    def call(self, carried: tuple[jax.Array, jax.Array], *operands: jax.Array) -> Any:
        """The operation."""
        return causal_conv(*carried, *operands, activation="silu", decode=self.decode)


@dataclass(frozen=True)
class Scan(Recurrent):
    """selective_scan of Mamba-2.8B."""

    channels, size = 5120, 16

    @property
    def bytes(self) -> int:
        """x, dt, B, C, y and the states."""
        return self.tokens * (8 * self.channels + 4 * self.size) + self.states * self.channels * self.size * 4

    @property
    def flops(self) -> int:
        """The multiply-adds of the state and of y."""
        return 4 * self.tokens * self.channels * self.size

    @property
    def floor(self) -> float:
        """What the exponentials take of 132 multiprocessors, 16 a cycle at 1.755 GHz, if that is more."""
        return max(super().floor, self.tokens * self.channels * self.size / (132 * 16 * 1.755e9))

    @functools.cached_property
    def arguments(self) -> list[Any]:
        """y stays near x, so that a chain keeps its magnitude."""
        (x,) = normal([(self.tokens, self.channels)])
        by_place = normal([(self.tokens, self.size)] * 2, scale=1 / 64)
        A, D = -jnp.ones((self.channels, self.size), jnp.float32), jnp.ones(self.channels, jnp.float32)
        return [(x, self.state(self.channels, self.size)), self.time_steps(self.channels), A, *by_place, D, *self.rows]

    def call(self, carried: tuple[jax.Array, jax.Array], *operands: jax.Array) -> Any:
        """The operation."""
        dt, A, B, C, D, *rows = operands
        x, states = carried
        return selective_scan(x, dt, A, B, C, D, states, *rows, decode=self.decode)


@dataclass(frozen=True)
class Dual(Recurrent):
    """ssd of Mamba2-2.7B."""

    heads, dim, size = 80, 64, 128

    @property
    def bytes(self) -> int:
        """x, dt, B, C, y and the states."""
        states = self.states * self.heads * self.dim * self.size * 4
        return self.tokens * (self.heads * (4 * self.dim + 4) + 4 * self.size) + states

    @property
    def flops(self) -> int:
        """The multiply-adds of the state and of y."""
        return 4 * self.tokens * self.heads * self.dim * self.size

    @functools.cached_property
    def arguments(self) -> list[Any]:
        """y stays near x, so that a chain keeps its magnitude."""
        (x,) = normal([(self.tokens, self.heads, self.dim)])
        by_place = normal([(self.tokens, 1, self.size)] * 2, scale=1 / 64)
        A, D = -jnp.ones(self.heads, jnp.float32), jnp.ones(self.heads, jnp.float32)
        states = self.state(self.heads, self.dim, self.size)
        return [(x, states), self.time_steps(self.heads), A, *by_place, D, *self.rows]

    def call(self, carried: tuple[jax.Array, jax.Array], *operands: jax.Array) -> Any:
        """The operation."""
        dt, A, B, C, D, *rows = operands
        x, states = carried
        return ssd(x, dt, A, B, C, D, states, *rows, decode=self.decode)


STATES = tuple(
    timing(f"{name} {label}", repeats, lengths, decode)
    for name, timing in (("causal_conv", Convolution), ("selective_scan", Scan), ("ssd", Dual))
    for label, repeats, lengths, decode in (
        ("decode B1", 200, (1,), True),
        ("decode B64", 50, (1,) * 64, True),
        ("decode B256", 50, (1,) * 256, True),
        ("extend 1x8192", 10, (8192,), False),
        ("extend 4x2048", 10, (2048,) * 4, False),
        ("extend 255 decodes + 7937", 5, (1,) * 255 + (7937,), False),
    )
)
