"""Checks and times the kernels on the machine at hand: python3 scripts/check_kernels.py [--bench] [--sweep --write].

Every implementation of every operation runs over the operation's cases in bfloat16 and float32, on fresh random
operands, against numpy in float64; device memory is filled with NaN beforehand, so that an element nobody wrote
shows. --bench times paged attention; --sweep times its configurations, and --write enters the best in
pallas_kernels/paged_attention/tuning, which check and bench then use.
"""

import argparse
import functools
import importlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import choose, tuning

OPERATIONS = {
    "paged_attention": ("triton", "reference"),
    "mla_attention": ("triton", "reference"),
    "kv_write": ("triton", "reference"),
    "latent_write": ("triton", "reference"),
    "rope": ("reference",),
    "qk_norm_rope_kv_write": ("triton", "reference"),
    "rms_norm": ("reference",),
    "rms_norm_residual": ("triton", "reference"),
    "moe": ("triton", "reference"),
    "causal_conv": ("reference",),
    "selective_scan": ("reference",),
    "ssd": ("reference",),
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
    """A paged attention call to time: rows of (queries, kv_len), 32/8 heads of 128, pages of 64, bfloat16."""

    name: str
    rows: tuple[tuple[int, int], ...]
    decode: bool
    repeats: int

    heads, kv_heads, dim, page, max_pages = 32, 8, 128, 64, 520

    @property
    def bytes(self) -> int:
        """The keys and values that have to be read."""
        return sum(kv_len for _, kv_len in self.rows) * self.kv_heads * self.dim * 2 * 2

    @property
    def flops(self) -> int:
        """The multiply-adds of both products, visible positions alone."""
        visible = sum(q * kv_len - q * (q - 1) // 2 for q, kv_len in self.rows)
        return 4 * self.heads * self.dim * visible

    @functools.cached_property
    def arguments(self) -> list[jax.Array]:
        """The call's operands; rows lie on shuffled pages."""
        rng = np.random.default_rng(0)
        used = [-(-kv_len // self.page) for _, kv_len in self.rows]
        pages = iter(1 + rng.permutation(sum(used)))
        table = np.zeros((len(self.rows), self.max_pages), np.int32)
        for row, count in enumerate(used):
            table[row, :count] = list(itertools.islice(pages, count))
        start = np.concatenate([[0], np.cumsum([q for q, _ in self.rows])]).astype(np.int32)
        kv_len = np.array([kv_len for _, kv_len in self.rows], np.int32)
        keys = jax.random.split(jax.random.key(0), 3)
        pool = (1 + sum(used), self.page, self.kv_heads, self.dim)
        k, v = (jax.random.normal(key, pool, jnp.bfloat16) for key in keys[:2])
        q = jax.random.normal(keys[2], (int(start[-1]), self.heads, self.dim), jnp.bfloat16)
        return [q, k, v, *map(jnp.asarray, (table, start, kv_len))]

    def compile(self, kernel: str = "", **config: int) -> Callable[..., jax.Array]:
        """Several calls chained in one program, under a configuration of a kernel if given."""
        from pallas_kernels.paged_attention import paged_attention

        def chain(q: jax.Array, *rest: jax.Array) -> jax.Array:
            attend = functools.partial(paged_attention, scale=self.dim**-0.5, decode=self.decode)
            return jax.lax.fori_loop(0, self.repeats, lambda _, q: attend(q, *rest), q)

        with choose.using("triton"), tuning.trying(kernel, **config):
            program: Callable[..., jax.Array] = jax.jit(chain).lower(*self.arguments).compile()
        return program

    def seconds(self, run: Callable[..., jax.Array]) -> float:
        """The median time of one call of a compiled chain."""
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            run(*self.arguments).block_until_ready()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[2:]) / self.repeats

    def report(self) -> str:
        """One line: time, bandwidth or arithmetic rate."""
        try:
            seconds = self.seconds(self.compile())
        except Exception as error:  # one case must not end the run
            return f"{self.name:34} FAILED {_last_line(error)}"
        return (
            f"{self.name:34} {seconds * 1e6:9.1f} us {self.bytes / seconds / 1e12:6.2f} TB/s"
            f" {self.flops / seconds / 1e12:7.1f} TFLOP/s"
        )


DECODES = (
    Timing("decode B64 ctx1024", ((1, 1024),) * 64, True, 40),
    Timing("decode B64 ctx4096", ((1, 4096),) * 64, True, 20),
    Timing("decode B8 ctx32768", ((1, 32768),) * 8, True, 20),
    Timing("decode B1 ctx32768", ((1, 32768),), True, 40),
    Timing("decode B256 ctx1024", ((1, 1024),) * 256, True, 20),
    Timing("decode B1 ctx512", ((1, 512),), True, 100),
    Timing("decode B64 ctx500, one of 32768", ((1, 500),) * 63 + ((1, 32768),), True, 40),
)
EXTENDS = (
    Timing("extend 1x8192", ((8192, 8192),), False, 5),
    Timing("extend 4x2048", ((2048, 2048),) * 4, False, 5),
    Timing("extend 1x8192 at 24576", ((8192, 32768),), False, 3),
    Timing("extend 255 decodes + 7937", ((1, 1024),) * 255 + ((7937, 7937),), False, 5),
    Timing("extend 256 decodes", ((1, 1024),) * 256, False, 10),
)


# What reading leaves open: how many blocks are in flight, how many programs share a multiprocessor.
CONFIGURATIONS = {
    "decode": [
        {"block": block, "warps": warps, "stages": stages, "programs": programs}
        for block, warps, stages in ((32, 4, 3), (32, 4, 4), (32, 2, 4), (64, 4, 2), (64, 4, 3), (64, 8, 3))
        for programs in (264, 528, 1056)
    ],
    "extend": [
        {"queries": queries, "block": block, "warps": warps, "stages": stages, "registers": registers}
        for queries, block, warps, stages, registers in (
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
        )
    ],
}
SWEPT = {"decode": (*DECODES[:1], *DECODES[3:]), "extend": (EXTENDS[0], EXTENDS[1], EXTENDS[3])}


def sweep(kernel: str, keep: bool) -> None:
    """Times every configuration of a kernel and names the best by the product of its times; keeps it in the table."""
    timings, found = SWEPT[kernel], []
    for timing in timings:
        jax.block_until_ready(timing.arguments)
    with ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
        jobs = [
            (config, [pool.submit(timing.compile, kernel, **config) for timing in timings])
            for config in CONFIGURATIONS[kernel]
        ]
        compiled = [(config, [(program, program.exception()) for program in programs]) for config, programs in jobs]
    for config, programs in compiled:
        errors = [error for _, error in programs if error]
        if errors:  # too much shared memory, for one
            print(f"{kernel} {config} FAILED {_last_line(errors[0])[:100]}", flush=True)
            continue
        times = [timing.seconds(program.result()) for timing, (program, _) in zip(timings, programs, strict=True)]
        found.append((float(np.prod(times)), config))
        print(f"{kernel} {config} {' '.join(f'{t * 1e6:.1f} us' for t in times)}", flush=True)
    if not found:
        raise SystemExit(f"sweep: no configuration of {kernel} ran; the reasons are above")
    best = min(found, key=lambda pair: pair[0])[1]
    print(f"best {kernel}: {best}", flush=True)
    if keep:
        when = {"head_dim": Timing.dim, "bytes": 2, "page": Timing.page}
        tuning.write("paged_attention", jax.devices()[0].device_kind, kernel, when, best)


def main() -> int:
    """Returns 0 when every case agrees."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="run the cases whose operation-name contains this")
    parser.add_argument("--no-check", action="store_true", help="time without checking")
    parser.add_argument("--bench", action="store_true", help="time paged attention (needs a GPU)")
    parser.add_argument("--sweep", action="store_true", help="time the kernels' configurations first (needs a GPU)")
    parser.add_argument("--write", action="store_true", help="with --sweep: keep the best in the tuning table")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    if arguments.sweep:
        for kernel in CONFIGURATIONS:
            sweep(kernel, arguments.write)
    good = arguments.no_check or check(arguments.only)
    if arguments.bench:
        print()
        for timing in (*DECODES, *EXTENDS):
            print(timing.report(), flush=True)
    print("\nall cases agree" if good else "\nSOME CASES FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
