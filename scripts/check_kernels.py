"""Checks and times the kernels on the machine at hand: python3 scripts/check_kernels.py [--bench] [--sweep --write].

Every implementation of every operation runs over the operation's cases in bfloat16 and float32, on fresh random
operands, against numpy in float64; device memory is filled with NaN beforehand, so that an element nobody wrote
shows. --bench times attention, mixtures and states; --sweep times their configurations, and --write enters the best in
the operations' tuning tables, which check and bench then use.
"""

import argparse
import functools
import importlib
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choose, tuning
from pallas_kernels.causal_conv import causal_conv
from pallas_kernels.moe import moe
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.ragged_attention import ragged_attention
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.softmax_top_k import softmax_top_k
from pallas_kernels.ssd import ssd

OPERATIONS = {
    "paged_attention": ("mosaic", "triton", "reference"),
    "ragged_attention": ("triton", "reference"),
    "mla_attention": ("triton", "reference"),
    "kv_write": ("triton", "reference"),
    "latent_write": ("triton", "reference"),
    "rope": ("reference",),
    "qk_norm_rope_kv_write": ("triton", "reference"),
    "rms_norm": ("reference",),
    "rms_norm_residual": ("triton", "reference"),
    "softmax_top_k": ("triton", "reference"),
    "moe": ("triton", "reference"),
    "causal_conv": ("triton", "reference"),
    "selective_scan": ("triton", "reference"),
    "ssd": ("triton", "reference"),
    "skinny_matmul": ("triton", "reference"),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 1.6e-2}


@dataclass
class Tally:
    """What one implementation did in one type."""

    cases: int = 0
    failed: int = 0
    absolute: float = 0.0
    relative: float = 0.0  # to the largest magnitude of the case
    worst: str = ""


def check(only: str) -> bool:
    """Runs the cases whose operation-name holds `only`; prints a table; True when all agree."""
    on_gpu = jax.default_backend() == "gpu"
    rng = np.random.default_rng(time.time_ns())
    jobs = []
    for operation, backends in OPERATIONS.items():
        for backend, dtype in itertools.product(backends, TOLERANCE):
            for case in importlib.import_module(f"pallas_kernels.{operation}.shapes").CASES:
                served = on_gpu or (backend == "reference" and not case.large)
                if served and only in f"{operation}-{case.name}":
                    jobs.append((operation, backend, dtype, case, *case.arguments(rng, jnp.dtype(dtype))))
    tallies: dict[tuple[str, str, str], Tally] = {}
    with ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
        programs = [pool.submit(_compile, *job) for job in jobs]
        for (operation, backend, dtype, case, operands, options), program in zip(jobs, programs, strict=True):
            tally = tallies.setdefault((operation, backend, dtype), Tally())
            tally.cases += 1
            label = f"{operation} {backend} {dtype} {case.name}"
            try:
                arrays = jax.tree.map(jnp.asarray, operands)
                run = program.result()
                _poison()
                results = [np.asarray(x, np.float64) for x in jax.tree.leaves(run(*arrays))]
            except Exception as error:  # one case must not end the run
                if isinstance(error, NotImplementedError) and backend == "mosaic":  # made for few shapes
                    tally.cases -= 1
                    continue
                tally.failed += 1
                print(f"FAILED {label}: {_last_line(error)}", flush=True)
                continue
            relatives = []
            for got, want in zip(results, case.expected(operands, options), strict=True):
                error, magnitude = _compare(got, want)
                relatives.append(error / magnitude)
                if relatives[-1] >= tally.relative:
                    tally.absolute, tally.relative, tally.worst = error, relatives[-1], case.name
            if max(relatives) > TOLERANCE[dtype]:
                tally.failed += 1
                print(f"WRONG  {label}: relative error {max(relatives):.2e}", flush=True)
    print(
        f"\n{'operation':16} {'backend':10} {'type':9} {'cases':>5} {'bad':>4} {'error':>9} {'relative':>9}  worst case"
    )
    for (operation, backend, dtype), t in tallies.items():
        counts = f"{operation:16} {backend:10} {dtype:9} {t.cases:5} {t.failed:4}"
        print(f"{counts} {t.absolute:9.2e} {t.relative:9.2e}  {t.worst}")
    return not any(tally.failed for tally in tallies.values())


def _compile(operation: str, backend: str, dtype: str, case: Any, operands: Any, options: Any) -> Callable[..., Any]:
    public = getattr(importlib.import_module(f"pallas_kernels.{operation}"), operation)
    shapes = jax.tree.map(lambda operand: jax.ShapeDtypeStruct(operand.shape, operand.dtype), operands)
    with choose.using(backend):
        program: Callable[..., Any] = jax.jit(functools.partial(public, **options)).lower(*shapes).compile()
    return program


def _compare(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """The largest error where `want` is a number, infinite for one that is none; the largest magnitude, at least 1."""
    number = ~np.isnan(want)
    error = np.abs(got[number] - want[number])
    largest = float(error.max(initial=0.0)) if np.isfinite(error).all() else float("inf")
    return largest, max(1.0, float(np.abs(want[number]).max(initial=0.0)))


def _poison() -> None:
    """Leaves NaN in the memory that the next outputs and temporaries are likely to take."""
    jnp.full((64 << 20,), jnp.nan, jnp.float32).block_until_ready()


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]


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
            return f"{self.name:40} FAILED {_last_line(error)}"
        return (
            f"{self.name:40} {seconds * 1e6:9.1f} us {self.bytes / seconds / 1e12:6.2f} TB/s"
            f" {self.flops / seconds / 1e12:7.1f} TFLOP/s, floor {self.floor * 1e6:8.1f} us"
        )


def _normal(shapes: Sequence[tuple[int, ...]], scale: float = 1.0) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [scale * jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]


@dataclass(frozen=True)
class Paged(Timing):
    """paged_attention: rows of (queries, kv_len), 32/8 heads of 128, pages of 64."""

    rows: tuple[tuple[int, int], ...]
    decode: bool = False

    heads, kv_heads, dim, page, max_pages = 32, 8, 128, 64, 520

    @property
    def bytes(self) -> int:
        """The keys and values, the queries and the result."""
        kv = sum(kv_len for _, kv_len in self.rows) * self.kv_heads
        return 2 * self.dim * 2 * (kv + sum(q for q, _ in self.rows) * self.heads)

    @property
    def flops(self) -> int:
        """The multiply-adds of both products, visible positions alone."""
        visible = sum(q * kv_len - q * (q - 1) // 2 for q, kv_len in self.rows)
        return 4 * self.heads * self.dim * visible

    @functools.cached_property
    def arguments(self) -> list[jax.Array]:
        """Rows lie on shuffled pages."""
        rng = np.random.default_rng(0)
        used = [-(-kv_len // self.page) for _, kv_len in self.rows]
        pages = iter(1 + rng.permutation(sum(used)))
        table = np.zeros((len(self.rows), self.max_pages), np.int32)
        for row, count in enumerate(used):
            table[row, :count] = list(itertools.islice(pages, count))
        start = _starts(q for q, _ in self.rows)
        kv_len = np.array([kv_len for _, kv_len in self.rows], np.int32)
        pool = (1 + sum(used), self.page, self.kv_heads, self.dim)
        operands = _normal([(int(start[-1]), self.heads, self.dim), pool, pool])
        return [*operands, *map(jnp.asarray, (table, start, kv_len))]

    def call(self, *operands: jax.Array) -> jax.Array:
        """The operation."""
        return paged_attention(*operands, scale=self.dim**-0.5, decode=self.decode)


@dataclass(frozen=True)
class Ragged(Timing):
    """ragged_attention: rows of so many tokens; bias: how far a position bias tells distances apart."""

    lengths: tuple[int, ...]
    heads: int = 16
    kv_heads: int = 16
    dim: int = 64
    causal: bool = False
    window: int | None = None
    bias: int = 0

    @property
    def bytes(self) -> int:
        """Queries, keys, values and the result, once."""
        return 2 * sum(self.lengths) * self.dim * 2 * (self.heads + self.kv_heads)

    @property
    def flops(self) -> int:
        """The multiply-adds of both products, visible positions alone."""
        visible = 0
        for length in self.lengths:
            reach = min(self.window or length, length)
            behind = length * reach - math.comb(reach, 2)
            visible += behind if self.causal else 2 * behind - length
        return 4 * self.heads * self.dim * visible

    @functools.cached_property
    def arguments(self) -> list[jax.Array]:
        """The call's operands."""
        start = _starts(self.lengths)
        operands = _normal([(int(start[-1]), heads, self.dim) for heads in (self.heads, self.kv_heads, self.kv_heads)])
        return [*operands, jnp.asarray(start)]

    def call(self, *operands: jax.Array) -> jax.Array:
        """The operation."""
        bias = jnp.zeros((self.heads, 2 * self.bias + 1), jnp.float32) if self.bias else None
        return ragged_attention(
            *operands, scale=self.dim**-0.5, causal=self.causal, window=self.window, position_bias=bias
        )


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
        return [*_normal([(self.tokens, self.size)]), *_normal(matrices, scale=1 / 64)]

    def call(self, *operands: jax.Array) -> jax.Array:
        """As a layer has it, with the residual."""
        x, router, gate_up, down = operands
        logits = jnp.dot(x, router, preferred_element_type=jnp.float32)
        return x + moe(x, gate_up, down, *softmax_top_k(logits, top_k=self.top_k)) * jnp.bfloat16(2**-6)


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
        return [*map(jnp.asarray, (index, _starts(self.lengths), lengths > 1))]

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
        x, weight, bias = _normal([(self.tokens, self.channels), (self.channels, self.taps), (self.channels,)])
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
        (x,) = _normal([(self.tokens, self.channels)])
        by_place = _normal([(self.tokens, self.size)] * 2, scale=1 / 64)
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
        (x,) = _normal([(self.tokens, self.heads, self.dim)])
        by_place = _normal([(self.tokens, 1, self.size)] * 2, scale=1 / 64)
        A, D = -jnp.ones(self.heads, jnp.float32), jnp.ones(self.heads, jnp.float32)
        states = self.state(self.heads, self.dim, self.size)
        return [(x, states), self.time_steps(self.heads), A, *by_place, D, *self.rows]

    def call(self, carried: tuple[jax.Array, jax.Array], *operands: jax.Array) -> Any:
        """The operation."""
        dt, A, B, C, D, *rows = operands
        x, states = carried
        return ssd(x, dt, A, B, C, D, states, *rows, decode=self.decode)


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int32)


DECODES = (
    Paged("decode B64 ctx1024", 40, ((1, 1024),) * 64, True),
    Paged("decode B64 ctx4096", 20, ((1, 4096),) * 64, True),
    Paged("decode B8 ctx32768", 20, ((1, 32768),) * 8, True),
    Paged("decode B1 ctx32768", 40, ((1, 32768),), True),
    Paged("decode B256 ctx1024", 20, ((1, 1024),) * 256, True),
    Paged("decode B1 ctx512", 100, ((1, 512),), True),
    Paged("decode B64 ctx500, one of 32768", 40, ((1, 500),) * 63 + ((1, 32768),), True),
)
EXTENDS = (
    Paged("extend 1x8192", 5, ((8192, 8192),)),
    Paged("extend 4x2048", 5, ((2048, 2048),) * 4),
    Paged("extend 1x8192 at 24576", 3, ((8192, 32768),)),
    Paged("extend 255 decodes + 7937", 5, ((1, 1024),) * 255 + ((7937, 7937),)),
    Paged("extend 256 decodes", 10, ((1, 1024),) * 256),
)
_SENTENCES = tuple(20 + 23 * i % 41 for i in range(410))  # of 20 to 60 tokens, 16,400 in all
RAGGED = (
    Ragged("ragged 410 sentences, 16 heads of 64", 20, _SENTENCES),
    Ragged("ragged 64x512, 16 heads of 64", 10, (512,) * 64),
    Ragged("ragged 8x8192, 16 heads of 64", 3, (8192,) * 8),
    Ragged("ragged 8x8192, 32/8 heads of 128, causal", 3, (8192,) * 8, 32, 8, 128, causal=True),
    Ragged("ragged 8x8192, 12 heads of 64, window 64", 10, (8192,) * 8, 12, 12, window=65),
    Ragged("ragged 8x2048, 32 heads of 80", 5, (2048,) * 8, 32, 32, 80),
    Ragged("ragged 64x512, 16 heads of 64, bias 128", 10, (512,) * 64, bias=128),
)


MIXTURES = tuple(
    Mixture(f"moe 128 experts, top 8, {tokens} tokens", repeats, tokens)
    for tokens, repeats in ((1, 100), (8, 50), (64, 20), (256, 20), (8192, 5))
)
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


@dataclass(frozen=True)
class Sweep:
    """Configurations of a kernel, and what to time them by: what reading leaves open, as how much is in flight."""

    operation: str
    kernel: str
    facts: dict[str, int]
    timings: tuple[Timing, ...]
    configurations: list[dict[str, int]]

    def run(self, keep: bool) -> None:
        """Times every configuration and names the best by the product of its times; keeps it in the table."""
        found = []
        for timing in self.timings:
            jax.block_until_ready(timing.arguments)
        with ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
            jobs = [
                (config, [pool.submit(timing.compile, self.kernel, **config) for timing in self.timings])
                for config in self.configurations
            ]
            compiled = [(config, [(program, program.exception()) for program in programs]) for config, programs in jobs]
        for config, programs in compiled:
            label = f"{self.operation} {self.kernel} {config}"
            errors = [error for _, error in programs if error]
            if errors:  # too much shared memory, for one
                print(f"{label} FAILED {_last_line(errors[0])[:100]}", flush=True)
                continue
            times = [
                timing.seconds(program.result()) for timing, (program, _) in zip(self.timings, programs, strict=True)
            ]
            found.append((float(np.prod(times)), config))
            print(f"{label} {' '.join(f'{t * 1e6:.1f} us' for t in times)}", flush=True)
        if not found:
            raise SystemExit(f"sweep: no configuration of {self.kernel} ran; the reasons are above")
        best = min(found, key=lambda pair: pair[0])[1]
        print(f"best {self.operation} {self.kernel} {self.facts}: {best}", flush=True)
        if keep:
            tuning.write(self.operation, jax.devices()[0].device_kind, self.kernel, self.facts, best)


def _configurations(names: str, *rows: tuple[int, ...]) -> list[dict[str, int]]:
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


_RAGGED_CONFIGURATIONS = _configurations(
    "queries block warps stages",
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 32, 4, 3),
    (64, 128, 4, 2),
    (128, 64, 4, 2),
    (128, 64, 4, 3),
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
)
_MIXTURE = "rows inner size depth warps stages"
_PREFILL_MIXTURES = _configurations(
    _MIXTURE,
    (128, 128, 128, 64, 8, 3),
    (128, 128, 256, 64, 8, 3),
    (128, 64, 128, 64, 8, 4),
    (128, 64, 128, 64, 4, 3),
    (64, 128, 128, 64, 4, 3),
    (64, 64, 128, 64, 4, 4),
)


def _decode_mixtures(rows: int) -> list[dict[str, int]]:
    return _configurations(
        _MIXTURE,
        (rows, 32, 32, 128, 4, 4),
        (rows, 32, 64, 128, 4, 3),
        (rows, 32, 64, 256, 4, 3),
        (rows, 64, 64, 64, 4, 3),
        (rows, 64, 64, 64, 4, 5),
        (rows, 64, 64, 128, 4, 3),
        (rows, 64, 128, 64, 4, 4),
        (rows, 128, 128, 64, 8, 3),
    )


SWEEPS = (
    Sweep(
        "paged_attention",
        "decode",
        {"head_dim": 128, "bytes": 2, "page": 64},
        (*DECODES[:1], *DECODES[3:]),
        [
            {"block": block, "warps": warps, "stages": stages, "programs": programs}
            for block, warps, stages in ((32, 4, 3), (32, 4, 4), (32, 2, 4), (64, 4, 2), (64, 4, 3), (64, 8, 3))
            for programs in (264, 528, 1056)
        ],
    ),
    Sweep(
        "paged_attention",
        "extend",
        {"head_dim": 128, "bytes": 2, "page": 64},
        (EXTENDS[0], EXTENDS[1], EXTENDS[3]),
        _configurations(
            "queries block warps stages registers",
            (128, 64, 8, 2, 0),
            (128, 64, 8, 3, 0),
            (128, 64, 8, 4, 0),
            (128, 64, 8, 2, 128),
            (128, 32, 8, 3, 0),
            (128, 32, 8, 3, 128),
            (128, 128, 8, 2, 0),
            (64, 64, 4, 2, 0),
            (64, 64, 4, 3, 0),
            (64, 32, 4, 3, 168),
            (64, 128, 4, 2, 0),
        ),
    ),
    Sweep("ragged_attention", "ragged", {"head_dim": 64, "bytes": 2}, RAGGED[:3], _RAGGED_CONFIGURATIONS),
    Sweep("ragged_attention", "ragged", {"head_dim": 128, "bytes": 2}, RAGGED[3:4], _RAGGED_CONFIGURATIONS),
    *(
        Sweep("moe", "grouped", {"rows": rows, "bytes": 2}, timings, configurations)
        for rows, timings, configurations in (
            (1, MIXTURES[:2], _decode_mixtures(16)),
            (4, MIXTURES[2:3], _decode_mixtures(16)),
            (16, MIXTURES[3:4], [*_decode_mixtures(16), *_decode_mixtures(32)]),
            (512, MIXTURES[4:], _PREFILL_MIXTURES),
        )
    ),
    Sweep(
        "causal_conv",
        "decode",
        {"taps": 4, "bytes": 2},
        STATES[0:3],
        _configurations("tokens channels warps", (1, 128, 1), (1, 256, 2), (1, 256, 1), (1, 512, 4), (1, 1024, 4)),
    ),
    Sweep(
        "causal_conv",
        "extend",
        {"taps": 4, "bytes": 2},
        STATES[3:6],
        _configurations(
            "tokens channels warps",
            (8, 256, 4),
            (16, 128, 4),
            (16, 256, 4),
            (16, 512, 8),
            (32, 128, 4),
            (32, 256, 8),
            (64, 64, 4),
        ),
    ),
    Sweep(
        "selective_scan",
        "decode",
        {"size": 16},
        STATES[6:9],
        _configurations(
            "channels warps ahead", (16, 1, 1), (32, 1, 1), (32, 2, 1), (64, 2, 1), (64, 4, 1), (128, 4, 1)
        ),
    ),
    Sweep(
        "selective_scan",
        "extend",
        {"size": 16},
        STATES[9:12],
        _configurations(
            "channels warps ahead",
            (8, 1, 8),
            (8, 1, 16),
            (16, 1, 4),
            (16, 1, 8),
            (16, 1, 16),
            (32, 1, 8),
            (32, 2, 8),
            (32, 4, 8),
        ),
    ),
    Sweep(
        "ssd",
        "decode",
        {"dim": 64, "size": 128},
        STATES[12:15],
        _configurations("dims warps", (8, 1), (16, 2), (16, 4), (32, 4), (32, 8), (64, 4), (64, 8)),
    ),
    Sweep(
        "ssd",
        "extend",
        {"dim": 64, "size": 128, "bytes": 2},
        STATES[15:18],
        _configurations(
            "tokens heads dims warps stages pass_dims pass_warps pass_stages",
            (128, 8, 64, 8, 2, 32, 4, 3),
            (128, 8, 64, 8, 3, 32, 4, 2),
            (128, 8, 64, 8, 2, 64, 4, 3),
            (128, 8, 64, 8, 2, 64, 8, 2),
            (128, 4, 64, 8, 2, 32, 8, 3),
            (128, 4, 64, 4, 2, 16, 4, 3),
            (64, 8, 64, 4, 2, 32, 4, 3),
            (64, 8, 64, 4, 3, 32, 4, 4),
            (64, 16, 64, 4, 3, 64, 4, 3),
            (64, 16, 64, 8, 2, 16, 4, 3),
        ),
    ),
)


def main() -> int:
    """Returns 0 when every case agrees."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="run the cases whose operation-name contains this")
    parser.add_argument("--no-check", action="store_true", help="time without checking")
    parser.add_argument("--bench", action="store_true", help="time attention, mixtures and states (needs a GPU)")
    parser.add_argument("--sweep", action="store_true", help="time the kernels' configurations first (needs a GPU)")
    parser.add_argument("--write", action="store_true", help="with --sweep: keep the best in the tuning table")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    if arguments.sweep:
        for sweep in SWEEPS:
            sweep.run(arguments.write)
    good = arguments.no_check or check(arguments.only)
    if arguments.bench:
        print()
        for timing in (*DECODES, *EXTENDS, *RAGGED, *MIXTURES, *STATES):
            print(timing.report(), flush=True)
    print("\nall cases agree" if good else "\nSOME CASES FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
