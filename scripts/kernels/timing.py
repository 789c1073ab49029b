"""How a call of a kernel is timed: chained in one program, beside what the card would allow."""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choose, tuning


@dataclass(frozen=True)
class Timing:
    """A call to time, in bfloat16, whose result can be its first operand again: several are chained in a program.

    That operand may be a tuple of arrays.
    """

    name: str
    repeats: int

    @property
    def bytes(self) -> int:
        """What has to be read and written."""
        raise NotImplementedError

    @property
    def flops(self) -> int:
        """The arithmetic nothing can leave out."""
        raise NotImplementedError

    @property
    def floor(self) -> float:
        """Seconds that the measured ceilings of an H200 would allow."""
        return max(self.bytes / 4.3e12, self.flops / 7.9e14)

    @functools.cached_property
    def arguments(self) -> list[Any]:
        """The call's operands."""
        raise NotImplementedError

    def call(self, *operands: Any) -> Any:
        """The operation."""
        raise NotImplementedError

    def compile(self, kernel: str = "", **config: int) -> Callable[..., Any]:
        """The chain's program, under a configuration of a kernel if given."""

        def chain(first: Any, *rest: jax.Array) -> Any:
            return jax.lax.fori_loop(0, self.repeats, lambda _, x: self.call(x, *rest), first)

        with choose.using("triton") if kernel else nullcontext(), tuning.trying(kernel, **config):
            program: Callable[..., Any] = jax.jit(chain).lower(*self.arguments).compile()
        return program

    def seconds(self, run: Callable[..., Any]) -> float:
        """The median time of one call of a compiled chain."""
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            jax.block_until_ready(run(*self.arguments))
            times.append(time.perf_counter() - begin)
        return statistics.median(times[2:]) / self.repeats

    def report(self) -> str:
        """One line: time, bandwidth, arithmetic rate, and the floor."""
        try:
            seconds = self.seconds(self.compile())
        except Exception as error:  # one case must not end the run
            return f"{self.name:40} FAILED {last_line(error)}"
        return (
            f"{self.name:40} {seconds * 1e6:9.1f} us {self.bytes / seconds / 1e12:6.2f} TB/s"
            f" {self.flops / seconds / 1e12:7.1f} TFLOP/s, floor {self.floor * 1e6:8.1f} us"
        )


def normal(shapes: Sequence[tuple[int, ...]], scale: float = 1.0) -> list[jax.Array]:
    """Arrays in bfloat16 of a standard deviation of `scale`."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [scale * jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]


def starts(lengths: Iterable[int]) -> np.ndarray:
    """Where rows of so many tokens begin, and where the last one ends; int32."""
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int32)


def last_line(error: BaseException) -> str:
    """What an error says in its last line, with its type."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
