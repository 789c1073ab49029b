"""The closed table of programs: which exist, how they are compiled, and which serves a step.

Ready means that every program of the table is compiled and has run. Nothing is compiled afterwards: a step that no
program serves is a CompileWhileServingError.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxllm.errors import CompileWhileServingError
from jaxllm.runner.compiling import Compiler, Elsewhere, Job, ProgramCost, Progress
from jaxllm.runner.drawing import VARIANTS, Variant
from jaxllm.runner.packing import COPIES, turned
from jaxllm.runner.programs import SCORE_BLOCK, Leaves, ProgramKey, Programs
from jaxllm.runner.state import State


def token_buckets(max_tokens: int, *, gpu: bool) -> list[int]:
    """Sizes of extend programs on a GPU: powers of two from 16 on, and those between them where a step takes as long as
    its tokens do. Few on a CPU so that it starts soon."""
    largest = max(16, -(-max_tokens // 16) * 16)
    if largest > SCORE_BLOCK:
        largest = -(-largest // SCORE_BLOCK) * SCORE_BLOCK
    sizes = sorted([16 << i for i in range(30)] + [384 << i for i in range(5)]) if gpu else [64]
    return [size for size in sizes if size < largest] + [largest]


def row_buckets(max_rows: int, *, gpu: bool) -> list[int]:
    """Sizes of decode programs on a GPU: up to 8 rows a step takes as long as reading the weights does, and no longer
    with a row that is not there; two per doubling from 16 on. Few on a CPU."""
    fine = [2, 8, *((2 + i % 2) << (i // 2 + 3) for i in range(60))]
    return [size for size in (fine if gpu else [1]) if size < max_rows] + [max_rows]


def closed_table(
    max_rows: int, max_tokens: int, steps: Sequence[int], *, gpu: bool, sources: bool = False
) -> list[ProgramKey]:
    """Every program of an engine. Rare variants come in fewer sizes; a step takes the next larger one.

    sources: the model has an encoder that reads some.
    """
    tokens, rows = token_buckets(max_tokens, gpu=gpu), row_buckets(max_rows, gpu=gpu)
    # Thinned out from the largest down, so that the largest size of each exists.
    scored = tokens[::-6] if gpu else tokens[-1:]
    keys = [ProgramKey("extend", size, "forward") for size in tokens]
    keys += [ProgramKey("extend", size, "scored") for size in scored]
    decodes: dict[Variant, list[int]]
    if gpu:
        decodes = {"forward": rows, "greedy": rows, "sampled": rows[::-2], "full": rows[::-3]}
    else:  # two cores compile a program in a second or more: few programs, each serving much
        decodes = {"forward": rows, "greedy": rows, "sampled": rows[:1], "full": rows[-1:]}
    for n in steps:
        # Fewer steps than could be are for when somebody waits, which is not for long, or for masks.
        thinned = ("forward", "greedy") if gpu and n < max(steps) else ()
        for variant, sizes in decodes.items():
            if (n == 1) == (variant == "forward"):
                keys += [ProgramKey("decode", size, variant, n) for size in sizes[:: -2 if variant in thinned else 1]]
    # What a draw of more rows than there are takes longer is little beside the step.
    draws = rows[::-2] if gpu else rows
    # On a CPU a draw that could be sampled is full: they take as long to compile as a step of a small model.
    kinds: tuple[Variant, ...] = ("greedy", "sampled", "full") if gpu else ("greedy", "full")
    keys += [ProgramKey("draw", size, variant) for size in draws for variant in kinds]
    if sources:
        keys += [ProgramKey("encode", size) for size in tokens[::-3]]
    # A state may take hundreds of megabytes: where there is one to copy, it should not be sixteen.
    keys += [ProgramKey("copy", size) for size in ((1, 4, COPIES) if gpu else (COPIES,))]
    return [*keys, ProgramKey("seed", tokens[-1])]


def _options(key: ProgramKey) -> tuple[tuple[str, bool | int], ...]:
    """Of XLA, for a model's program: which matmuls it tries and times, which takes most of a compile.

    For few rows Triton's beside cuBLAS's. Beyond those it does not choose Triton's for the better, as what it times has
    its weights in the cache, and cuBLAS's first guess is as fast as what it finds, but for MISGUESSED rows or tokens
    and for the most tokens at once.
    """
    if jax.default_backend() != "gpu" or (key.kind == "decode" and key.size <= FEW_ROWS):
        return ()
    cublas = ("xla_gpu_enable_triton_gemm", False)
    return (cublas,) if _timed_matmuls(key) else (cublas, ("xla_gpu_autotune_level", 0))


def _timed_matmuls(key: ProgramKey) -> bool:
    """Whether XLA times what it may multiply by."""
    if key.kind == "decode":
        return key.size <= FEW_ROWS or key.size == MISGUESSED
    return (key.kind, key.variant) == ("extend", "forward") and (key.size == MISGUESSED or key.size >= MANY_TOKENS)


def _kernels(key: ProgramKey) -> tuple[str, ...]:
    """What a program has in common with others: a forward pass' kernels, and those that filter and draw, which take by
    far the longest of all to lower."""
    forward = (key.kind,) if key.kind in ("extend", "decode") else ()
    draws = ("draw",) if key.kind in ("decode", "draw") and key.variant in ("sampled", "full") else ()
    return forward + draws


def _shared(key: ProgramKey) -> bool:
    """Whether other processes may build a program: not where XLA times on the device, which one alone should do, nor
    where each of them would compile the kernels that draw, for a few programs."""
    return not _timed_matmuls(key) and "draw" not in _kernels(key)


def _urgency(key: ProgramKey, most_steps: int) -> tuple[bool, bool, int, int]:
    """What is compiled sooner: the longer. Before those one of each size of few rows, whose matmuls are timed, one
    program at a time; the others of the size come late. most_steps: of the table's decode programs."""
    usual = key.kind == "decode" and key.steps == most_steps and key.variant in ("greedy", "forward")
    return usual and key.size <= FEW_ROWS, key.kind in ("extend", "decode"), key.size, key.steps


DIRECTORY_VARIABLE = "JAXLLM_COMPILATION_CACHE_DIR"
FEW_ROWS = 16
"""Up to which Triton's matmuls read weights faster than cuBLAS's; at 64 rows a step is slower by a twentieth."""
MISGUESSED = 128
"""Rows or tokens for which cuBLAS's first guess takes two thirds longer than its best, where a matrix is wide: a ninth
of an 8B's step. Of 24 to 256 rows and 16 to 4,096 tokens no others gain over 2% by being timed; some lose up to 6%."""
MANY_TOKENS = 8192
"""From which on timing cuBLAS's matmuls pays: 4% of an 8B's step."""
LONG_STEP = 1024
"""Tokens from which on an extend step takes so long that recording a command buffer, 1 to 3 ms, hardly shows in it."""
TIMED_SIZES = 6
"""Decode programs whose steps are timed; between them steps are interpolated."""


def use_compilation_cache(directory: str | None) -> Path | None:
    """Has JAX keep what it compiles in `directory` between starts, and returns it, or None where that is turned off by
    ''. None is what JAXLLM_COMPILATION_CACHE_DIR says, or ~/.cache/jaxllm."""
    if directory is None:
        directory = os.environ.get(DIRECTORY_VARIABLE, "~/.cache/jaxllm")
    path = Path(directory).expanduser() if directory else None
    _set_compilation_cache(str(path) if path else None)
    return path


def _set_compilation_cache(path: str | None) -> None:
    if path == jax.config.jax_compilation_cache_dir:
        return
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation_cache.reset_cache()  # JAX looks at the directory once, before it first compiles


def mask_width(vocab_size: int) -> int:
    """Numbers of 32 bits that hold one for each token."""
    return -(-vocab_size // 32)


def everything(rows: int, vocab_size: int) -> jax.Array:
    """Masks [rows, W] that forbid nothing."""
    return jnp.full((rows, mask_width(vocab_size)), -1, jnp.int32)


class ProgramTable:
    """The compiled programs of one engine.

    Attributes:
        compiler: what builds the programs.
        compiled, costs: the executables by key, and what each takes.
        programs_run: calls since start, warm-up left out.
        compile_seconds: wall time of building the table.
        seconds: measured wall time of the programs that were timed, with nothing in the cache to attend to.
    """

    def __init__(
        self,
        programs: Programs,
        keys: Sequence[ProgramKey],
        weights: Leaves,
        dtype: Any,
        compiler: Compiler | None = None,
    ):
        self.programs = programs
        self.keys = list(keys)
        self.compiler = compiler or Compiler()
        self.compiled: dict[ProgramKey, jax.stages.Compiled] = {}
        self.costs: dict[ProgramKey, ProgramCost] = {}
        self.programs_run = 0
        self.compile_seconds = 0.0
        self.seconds: dict[ProgramKey, float] = {}
        self._weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights)
        self._dtype = dtype
        self._choice: dict[tuple[str, int, Variant, int], ProgramKey] = {}

    @property
    def size(self) -> int:
        return len(self.keys)

    def job(self, key: ProgramKey, num_pages: Sequence[int]) -> Job[ProgramKey]:
        """One program to be built, for pools of num_pages pages, by cache group."""
        geometry = self.programs.geometry
        state, packed = geometry.state_shapes, jax.ShapeDtypeStruct((), jnp.int32)
        if key.kind == "draw":
            masks = jax.ShapeDtypeStruct((key.size, mask_width(geometry.vocab_size)), jnp.int32)
            out = jax.tree.structure((state, packed))
            draw = self.programs.drawing.program(key.variant)
            return Job(key, draw, (state, masks), out, donated=(0,), shared=_shared(key), kernels=_kernels(key))
        cache = geometry.cache_shapes(num_pages, self._dtype)
        packed = jax.ShapeDtypeStruct((self.programs.packed_size(key),), jnp.int32)
        out = jax.tree.structure((cache, state, packed))
        arguments = (self._weights, cache, state, packed)
        return Job(
            key, self.programs.build(key), arguments, out, donated=(1, 2), options=_options(key), shared=_shared(key),
            kernels=_kernels(key),
        )  # fmt: skip

    def compile(
        self,
        num_pages: Sequence[int],
        progress: Progress | None = None,
        check: Callable[[ProgramCost], None] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """Builds the whole table. check: told what each program takes; may raise. elsewhere: who may help."""
        started = time.perf_counter()
        most_steps = max((key.steps for key in self.keys if key.kind == "decode"), default=1)
        order = sorted(self.keys, key=lambda key: _urgency(key, most_steps), reverse=True)
        built = self.compiler.build([self.job(key, num_pages) for key in order], progress, check, elsewhere)
        self.compiled |= {key: program.run for key, program in built.items()}
        self.costs |= {key: program.cost for key, program in built.items()}
        self.compile_seconds += time.perf_counter() - started

    def warm(
        self, weights: Leaves, cache: Leaves, state: State, progress: Progress | None = None
    ) -> tuple[Leaves, State]:
        """Runs every program on the sink alone; returns cache and state, which the calls consume.

        Once, for a first run loads and allocates. Decode programs twice, for in the second a GPU records its command
        buffers, which would delay a stream more than its step takes, as an extend step's would not. Those that are
        timed once more, and short extend steps twice, as recording takes a part of their time.
        """
        timed = self._timed()
        for done, key in enumerate(self.keys):
            draw = key.kind == "draw"
            inputs = everything(key.size, self.programs.geometry.vocab_size) if draw else self._harmless(key)
            short = key.kind == "extend" and key.size < LONG_STEP
            runs = (2 if key.kind in ("decode", "draw") else 1) + (key in timed) * (1 + short)
            for _ in range(runs):
                started = time.perf_counter()
                if draw:
                    state, out = self.compiled[key](state, inputs)
                else:
                    cache, state, out = self.compiled[key](weights, cache, state, inputs)
                if key in timed:
                    jax.block_until_ready(out)
                    self.seconds[key] = time.perf_counter() - started
            if progress is not None:
                progress(done + 1, len(self.keys), "warming up")
        jax.block_until_ready((cache, state))
        return cache, state

    def choose(self, kind: str, size: int, variant: Variant, steps: int = 1) -> ProgramKey:
        """The least program that serves `size` tokens or rows with what `variant` can do."""
        wanted = (kind, size, variant, steps)
        if wanted not in self._choice:
            rank = VARIANTS.index(variant)
            serving = [
                key for key in self.keys
                if (key.kind, key.steps) == (kind, steps) and key.size >= size and VARIANTS.index(key.variant) >= rank
            ]  # fmt: skip
            if not serving:
                raise CompileWhileServingError(
                    f"no program serves {ProgramKey(kind, size, variant, steps)}: "  # type: ignore[arg-type]
                    f"the table ends at {self._largest(kind)}. The step is larger than the engine was started for; "
                    "raise max_num_seqs, max_num_batched_tokens or decode_steps"
                )
            self._choice[wanted] = min(serving, key=lambda key: (key.size, VARIANTS.index(key.variant)))
        return self._choice[wanted]

    def run(
        self, key: ProgramKey, weights: Leaves, cache: Leaves, state: State, packed: np.ndarray
    ) -> tuple[Leaves, State, jax.Array]:
        """Enqueues a program other than a draw; cache and state are consumed."""
        self.programs_run += 1
        result: tuple[Leaves, State, jax.Array] = self.compiled[key](weights, cache, state, turned(packed))
        return result

    def draw(self, key: ProgramKey, state: State, masks: jax.Array | np.ndarray) -> tuple[State, jax.Array]:
        """Enqueues a draw of what a forward program left; the state is consumed. masks: [R, W] int32."""
        self.programs_run += 1
        result: tuple[State, jax.Array] = self.compiled[key](state, masks)
        return result

    @property
    def mask_bytes(self) -> int:
        """Of the masks on the device, those of two steps, beside whatever runs."""
        rows = max((key.size for key in self.keys if key.kind == "draw"), default=0)
        return rows * 2 * 4 * mask_width(self.programs.geometry.vocab_size)

    def step_seconds(self, num_rows: int) -> float:
        """Measured seconds of one step of the decode program that serves num_rows, or between its neighbours'."""
        timed = sorted((key.size, seconds) for key, seconds in self.seconds.items() if key.kind == "decode")
        steps = max(key.steps for key in self.seconds if key.kind == "decode")
        size = self.choose("decode", num_rows, "greedy", steps).size
        sizes, seconds = zip(*timed, strict=True)
        return float(np.interp(size, sizes, seconds)) / steps

    def extend_seconds(self) -> list[tuple[int, float]]:
        """Measured seconds of the extend programs by their sizes; none on a CPU, whose times are not steady."""
        return sorted((key.size, seconds) for key, seconds in self.seconds.items() if key.kind == "extend")

    def _timed(self) -> set[ProgramKey]:
        """Extend programs of the least variant on a GPU, and decode programs of the most steps that serve no more than
        need be, spread over their sizes."""
        steps = max(key.steps for key in self.keys if key.kind == "decode")
        keys = sorted({self.choose("decode", key.size, "greedy", steps) for key in self.keys if key.kind == "decode"})
        places = np.linspace(0, len(keys) - 1, min(TIMED_SIZES, len(keys))).round().astype(int)
        extends = [key for key in self.keys if (key.kind, key.variant) == ("extend", "forward")]
        return {keys[place] for place in places} | set(extends if jax.default_backend() == "gpu" else ())

    def _harmless(self, key: ProgramKey) -> np.ndarray:
        """Packed input that reads and writes the sink alone."""
        geometry = self.programs.geometry
        packed = np.zeros(self.programs.packed_size(key), np.int32)
        if key.kind == "extend":
            self.programs.extend_layout(key).split(packed)[0][:, 0] = geometry.sink
        elif key.kind == "decode":
            slot, columns, _ = self.programs.decode_layout(key).split(packed)
            slot[:], columns[:] = geometry.sink, geometry.tables.width
        elif key.kind == "seed":
            packed[:2] = geometry.sink, 1
        return turned(packed)

    def _largest(self, kind: str) -> str:
        return str(max(key for key in self.keys if key.kind == kind))
