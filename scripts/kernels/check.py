"""Every implementation of an operation over its cases, against numpy in float64."""

import functools
import importlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.calls import DTYPES, Call, Prepared, cases, prepare
from kernels.timing import last_line
from pallas_kernels import choose

OPERATIONS = {
    "paged_attention": ("mosaic", "triton", "reference"),
    "decode_attention": ("triton", "reference"),
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
    "sampling_threshold": ("triton", "reference"),
    "sampling_draw": ("triton", "reference"),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 1.6e-2}
# References compute in one thread each, as several of these commands share a machine and each has this many of them.
PREPARERS = min(4, os.cpu_count() or 1)
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass
class Tally:
    """What one implementation did in one type; left: cases still to come."""

    operation: str
    backend: str
    dtype: str
    left: int
    cases: int = 0
    failed: int = 0
    absolute: float = 0.0
    relative: float = 0.0  # to the largest magnitude of the case
    worst: str = ""

    def line(self) -> str:
        """A row of the table."""
        counts = f"{self.operation:16} {self.backend:10} {self.dtype:9} {self.cases:5} {self.failed:4}"
        return f"{counts} {self.absolute:9.2e} {self.relative:9.2e}  {self.worst}"

    def take(self, name: str, results: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
        """Counts a case whose implementation returned."""
        label = f"{self.operation} {self.backend} {self.dtype} {name}"
        self.cases += 1
        relatives = []
        for got, want in zip(results, expected, strict=True):
            error, magnitude = _compare(got, want)
            relatives.append(error / magnitude)
            if relatives[-1] >= self.relative:
                self.absolute, self.relative, self.worst = error, relatives[-1], name
        if max(relatives) > TOLERANCE[self.dtype]:
            self.failed += 1
            print(f"WRONG  {label}: relative error {max(relatives):.2e}", flush=True)

    def fail(self, name: str, error: Exception) -> None:
        """Counts a case whose implementation did not return, unless it is not made for such."""
        if isinstance(error, NotImplementedError) and self.backend == "mosaic":  # made for few shapes
            return
        self.cases += 1
        self.failed += 1
        label = f"{self.operation} {self.backend} {self.dtype} {name}"
        print(f"FAILED {label}: {last_line(error)}", flush=True)


Programs = dict[str, Callable[..., Any] | Exception]


def check(only: str) -> bool:
    """Runs the cases whose operation-name holds `only`; prints a table, each row when it is there; True when all agree.

    Processes draw and compute, threads compile, and this thread runs whatever is ready.
    """
    calls = [
        Call(operation, dtype, case.name)
        for operation in OPERATIONS
        for dtype in DTYPES
        for case in sorted(cases(operation), key=lambda case: not case.large)  # the longest first
        if only in f"{operation}-{case.name}" and _backends(operation, case.large)
    ]
    tallies: dict[tuple[str, str, str], Tally] = {}
    for call in calls:
        for backend in _backends(call.operation, call.case.large):
            tally = Tally(call.operation, backend, call.dtype, 0)
            tallies.setdefault((call.operation, backend, call.dtype), tally).left += 1
    columns = f"{'operation':16} {'backend':10} {'type':9} {'cases':>5} {'bad':>4}"
    print(f"\n{columns} {'error':>9} {'relative':>9}  worst case", flush=True)
    os.environ |= {name: os.environ.get(name, one) for name, one in ONE_THREAD.items()}  # numpy here has read them
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(PREPARERS, context) as processes,
        ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as threads,
    ):
        futures = {}
        for number, call in enumerate(calls):
            prepared = processes.submit(prepare, call, Path(directory) / str(number))
            futures[threads.submit(_compile_all, call, prepared)] = call
        for future in as_completed(futures):
            call = futures.pop(future)
            for backend, outcome in _run_all(*future.result()):
                tally = tallies[call.operation, backend, call.dtype]
                if isinstance(outcome, Exception):
                    tally.fail(call.name, outcome)
                else:
                    tally.take(call.name, *outcome)
                tally.left -= 1
                if not tally.left:
                    print(tally.line(), flush=True)
    return not any(tally.failed for tally in tallies.values())


def _backends(operation: str, large: bool) -> tuple[str, ...]:
    if jax.default_backend() == "gpu":
        return OPERATIONS[operation]
    return () if large else ("reference",)


def _compile_all(call: Call, prepared: Future[Prepared]) -> tuple[Prepared, Programs]:
    """The call's program for every implementation, or why there is none."""
    ready = prepared.result()
    # XLA would time the matmuls of every reference, one program at a time, to no end here.
    untuned: dict[str, bool | int | str] = {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else {}
    public = getattr(importlib.import_module(f"pallas_kernels.{call.operation}"), call.operation)
    shapes = [None if x is None else jax.ShapeDtypeStruct(*x) for x in ready.shapes]
    programs: Programs = {}
    for backend in _backends(call.operation, call.case.large):
        try:
            with choose.using(backend):
                lowered = jax.jit(functools.partial(public, **ready.options)).lower(*shapes)
                programs[backend] = lowered.compile(compiler_options=untuned or None)
        except Exception as error:  # one case must not end the run
            programs[backend] = error
    return ready, programs


def _run_all(prepared: Prepared, programs: Programs) -> list[tuple[str, Any]]:
    """What each implementation returns, beside what it should, or why it did not."""
    operands, expected = prepared.load()
    try:
        arrays = jax.tree.map(jnp.asarray, operands)
    except Exception as error:  # no room for them, for one
        return [(backend, error) for backend in programs]
    outcomes: list[tuple[str, Any]] = []
    for backend, program in programs.items():
        if isinstance(program, Exception):
            outcomes.append((backend, program))
            continue
        try:
            _poison()
            results = [np.asarray(x, np.float64) for x in jax.tree.leaves(program(*arrays))]
            outcomes.append((backend, (results, expected)))
        except Exception as error:  # one case must not end the run
            outcomes.append((backend, error))
    return outcomes


def _compare(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """The largest error where `want` is a number, infinite for one that is none; the largest magnitude, at least 1."""
    number = ~np.isnan(want)
    error = np.abs(got[number] - want[number])
    largest = float(error.max(initial=0.0)) if np.isfinite(error).all() else float("inf")
    return largest, max(1.0, float(np.abs(want[number]).max(initial=0.0)))


def _poison() -> None:
    """Leaves NaN in the memory that the next outputs and temporaries are likely to take."""
    jnp.full((64 << 20,), jnp.nan, jnp.float32).block_until_ready()
