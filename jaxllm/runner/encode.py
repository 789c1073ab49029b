"""The runner of models that generate nothing: whole sequences in, vectors out, nothing kept in between.

A program takes (weights, packed), packed being one int32 array, and yields one float32 array. There is one for each
bucket of tokens, and a second kind that also yields the numbers of each token, in fewer sizes.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import weights
from jaxllm.config import EngineConfig, SchedulerConfig
from jaxllm.core import EncodeOutput, EncodePlan, ModelInfo, Pooling, PoolingRequest
from jaxllm.errors import CompileWhileServingError, ConfigError
from jaxllm.layers.step import EncodeStep
from jaxllm.models import registry
from jaxllm.runner.compiling import Compiler, Job, ProgramCost, Progress
from jaxllm.runner.guard import CompileGuard
from jaxllm.runner.plan import MemoryPlan, available, find_architecture, kept_programs, show, size_of
from jaxllm.runner.programs import FlatModel, Leaves
from jaxllm.runner.resolve import claim_memory, device_budget, given, on_gpu, resolve_encoder
from jaxllm.runner.start import Stages, build_and_load
from jaxllm.runner.table import token_buckets, use_compilation_cache


@dataclass(frozen=True, order=True)
class EncodeKey:
    """Names a program. per_token: it also yields the numbers of each token."""

    tokens: int
    per_token: bool = False

    def __str__(self) -> str:
        return f"encode of {self.tokens} tokens{', per token' if self.per_token else ''}"


@dataclass(frozen=True)
class EncodeLayout:
    """A program's packed array: [R] tokens of each row, [T] ids, and [T] segments where the model tells them apart.

    Works on numpy arrays (views) and traced ones alike.
    """

    rows: int
    tokens: int
    typed: bool

    @property
    def size(self) -> int:
        return self.rows + self.tokens * (1 + self.typed)

    def split(self, packed: Any) -> tuple[Any, Any, Any]:
        """count [R], ids [T], types [T] or None."""
        ids_end = self.rows + self.tokens
        return packed[: self.rows], packed[self.rows : ids_end], packed[ids_end:] if self.typed else None

    def pack(self, rows: list[PoolingRequest]) -> np.ndarray:
        packed = np.zeros(self.size, np.int32)
        count, ids, types = self.split(packed)
        count[: len(rows)] = [len(request.prompt) for request in rows]
        num_tokens = int(count.sum())
        ids[:num_tokens] = np.fromiter(chain.from_iterable(request.prompt for request in rows), np.int32, num_tokens)
        if self.typed:
            at = 0
            for request in rows:
                if request.token_types is not None:
                    types[at : at + len(request.prompt)] = request.token_types
                at += len(request.prompt)
        return packed

    def step(self, packed: jax.Array) -> EncodeStep:
        count, ids, types = self.split(packed)
        return EncodeStep.of(ids, count, types)


class EncodePrograms:
    """The programs of one model: the function of each EncodeKey, and all of them compiled."""

    def __init__(
        self, model: FlatModel, pooling: Pooling, typed: bool, max_num_seqs: int, max_tokens: int, compiler: Compiler
    ):  # fmt: skip
        self.model = model
        self.compiler = compiler
        self.pooling = pooling
        self.typed = typed
        self.max_num_seqs = max_num_seqs
        buckets = token_buckets(max_tokens, gpu=on_gpu())
        self.keys = [EncodeKey(size) for size in buckets] if pooling.sequence is not None else []
        if pooling.per_token:
            # Thinned out from the largest down where the other kind serves most requests.
            self.keys += [EncodeKey(size, per_token=True) for size in buckets[:: -2 if self.keys else -1]]
        self.compiled: dict[EncodeKey, jax.stages.Compiled] = {}
        self.costs: dict[EncodeKey, ProgramCost] = {}
        self.compile_seconds = 0.0
        # Programs that differ in their ends only share one trace of the layers.
        self._encode = jax.jit(lambda leaves, step: model.merge(leaves).encode(step))

    def layout(self, key: EncodeKey) -> EncodeLayout:
        return EncodeLayout(min(key.tokens, self.max_num_seqs), key.tokens, self.typed)

    def build(self, key: EncodeKey) -> Callable[[Leaves, jax.Array], jax.Array]:
        """The function of (weights, packed): [R, D] of rows, where they have any, then [T, D] of tokens, if asked."""

        def program(leaves: Leaves, packed: jax.Array) -> jax.Array:
            step = self.layout(key).step(packed)
            hidden = self._encode(leaves, step)
            model = self.model.merge(leaves)
            parts = [model.pooled(hidden, step)] if self.pooling.sequence is not None else []
            if key.per_token:
                parts.append(model.outputs(hidden))
            return jnp.concatenate([part.ravel() for part in parts])

        program.__name__ = program.__qualname__ = f"encode_{key.tokens}{'_per_token' if key.per_token else ''}"
        return program

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.keys)

    def compile(self, progress: Progress | None = None, keys: list[EncodeKey] | None = None) -> None:
        """Builds all of them, or these; the longest compiles first."""
        started = time.perf_counter()
        order = sorted(self.keys if keys is None else keys, key=lambda key: key.tokens, reverse=True)
        built = self.compiler.build([self.job(key) for key in order], progress)
        self.compiled |= {key: program.run for key, program in built.items()}
        self.costs |= {key: program.cost for key, program in built.items()}
        self.compile_seconds += time.perf_counter() - started

    def job(self, key: EncodeKey) -> Job[EncodeKey]:
        leaves = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self.model.leaves)
        packed = jax.ShapeDtypeStruct((self.layout(key).size,), jnp.int32)
        return Job(key, self.build(key), (leaves, packed), jax.tree.structure(packed))

    def read(self, key: EncodeKey, out: np.ndarray, rows: list[PoolingRequest]) -> list[np.ndarray]:
        """What each of the rows asked for, of a program's output."""
        size, layout = self.pooling.size, self.layout(key)
        num_rows = layout.rows if self.pooling.sequence is not None else 0
        pooled = out[: num_rows * size].reshape(num_rows, size)
        of_tokens = out[num_rows * size :].reshape(-1, size)
        values, at = [], 0
        for i, request in enumerate(rows):
            own = of_tokens[at : at + len(request.prompt)] if request.per_token else pooled[i]
            values.append(own.copy())  # which does not keep the whole output alive
            at += len(request.prompt)
        return values


@dataclass
class _Prepared:
    """An engine's programs before its weights."""

    config: EngineConfig
    architecture: registry.Architecture
    model: Any
    programs: EncodePrograms
    plan: MemoryPlan


def plan_memory(
    config: EngineConfig, *, model_class: Any = None, programs: bool = False, progress: Progress | None = None
) -> MemoryPlan:
    """The memory plan of an engine, without loading its weights.

    programs: compile all of them for their costs; otherwise the hungriest alone.
    """
    prepared = _prepare(config, model_class)
    keys = prepared.programs.keys if programs else [max(prepared.programs.keys, key=lambda key: key.tokens)]
    prepared.programs.compile(progress, keys)
    prepared.programs.compiler.keep()
    return _with_costs(prepared.plan, prepared.programs)


def _prepare(config: EngineConfig, model_class: Any) -> _Prepared:
    claim_memory(config)
    directory = use_compilation_cache(config.compilation_cache_dir)
    architecture = find_architecture(config, model_class)
    described = weights.read_sentence_transformer(weights.resolve_model_path(config.model))
    pooling = architecture.config.pooling
    assert pooling is not None
    longest = architecture.config.max_position_embeddings
    if described is not None and described.max_seq_length is not None:
        longest = min(longest, described.max_seq_length)
    resolved = resolve_encoder(config, architecture.config, longest, pooling.size if pooling.per_token else None)
    model = architecture.within(given(resolved.max_model_len)).build(jnp.dtype(resolved.dtype))
    flat = FlatModel.of(model)
    programs = EncodePrograms(
        flat, pooling, architecture.config.type_vocab_size > 1,
        given(resolved.max_num_seqs), given(resolved.max_num_batched_tokens),
        Compiler(kept_programs(directory, resolved, type(model))),
    )  # fmt: skip
    plan = MemoryPlan(
        model=resolved.served_model_name[0],
        device=jax.devices()[0].device_kind,
        dtype=resolved.dtype,
        parameters=sum(leaf.size for leaf in flat.leaves),
        weight_bytes=size_of(flat.leaves),
        state_bytes=0,
        program_bytes=0,
        budget_bytes=device_budget(resolved),
        kv_bytes_per_token=0,
        page_size=resolved.block_size,
        groups=(),
        max_model_len=given(resolved.max_model_len),
        max_num_seqs=given(resolved.max_num_seqs),
    )
    return _Prepared(resolved, architecture, model, programs, plan)


def _with_costs(plan: MemoryPlan, programs: EncodePrograms) -> MemoryPlan:
    """The plan with what its programs take. ConfigError where they do not fit beside the weights.

    Two steps are on their way at once, but their temporaries follow each other.
    """
    costs = tuple(cost for _, cost in sorted(programs.costs.items()))
    hungriest = max(costs, key=lambda one: one.temp_bytes)
    budget = plan.budget_bytes
    if budget is not None and plan.weight_bytes + hungriest.temp_bytes > available(budget):
        raise ConfigError(
            f"weights ({show(plan.weight_bytes)}) and the hungriest program, {hungriest.name} "
            f"({show(hungriest.temp_bytes)}), do not fit into {show(budget)}: lower max_num_batched_tokens or "
            "max_model_len, or raise gpu_memory_utilization"
        )
    return dataclasses.replace(plan, programs=costs, program_bytes=hungriest.temp_bytes)


@dataclass(slots=True)
class EncodeHandle:
    """A submitted step whose output is on its way."""

    plan: EncodePlan
    key: EncodeKey
    out: jax.Array


class EncodeRunner:
    """Executes plans of whole sequences on one device. One thread submits and collects.

    Attributes:
        config: the configuration, with the Nones resolved that mean something without a cache.
        info: what the rooms above may know of the model.
        memory_plan, table: how memory is divided, and the programs.
        programs_run: calls since start, warm-up left out.
        start_seconds: wall time of each stage of the start, some of which ran beside each other.
    """

    @classmethod
    def load(cls, config: EngineConfig, *, model_class: Any = None, progress: Progress | None = None) -> "EncodeRunner":
        """Plans memory, loads weights, compiles and warms every program. progress(done, total, what) is told."""
        stages = Stages()
        with stages("planning"):
            prepared = _prepare(config, model_class)
        programs, compiler = prepared.programs, prepared.programs.compiler

        def read(report: Progress) -> Any:
            path, how = weights.resolve_model_path(config.model), prepared.config
            return weights.load(prepared.model, path, load_format=how.load_format, seed=how.seed, progress=report)

        _, model = build_and_load(lambda: programs.compile(progress), read, compiler, progress, stages)
        with stages("warm-up"), compiler.trying():
            runner = cls(prepared, model, progress)
        stages.end(compiler)
        runner.start_seconds = stages.seconds
        return runner

    def __init__(self, prepared: _Prepared, model: Any, progress: Progress | None = None):
        """prepared: with its programs compiled. model: the prepared one with its weights."""
        self.config = prepared.config
        self.start_seconds: dict[str, float] = {}
        self.table = prepared.programs
        self.memory_plan = _with_costs(prepared.plan, self.table)
        self.info = _model_info(prepared)
        self.programs_run = 0
        self._weights: Leaves = tuple(FlatModel.of(model).leaves)
        self._warm(progress)
        self._guard = CompileGuard()

    @property
    def scheduler_config(self) -> SchedulerConfig:
        """The numbers the scheduler works with; pages mean nothing to it."""
        c = self.config
        return SchedulerConfig(
            groups=(),
            page_size=c.block_size,
            max_num_seqs=given(c.max_num_seqs),
            max_num_batched_tokens=given(c.max_num_batched_tokens),
            max_model_len=given(c.max_model_len),
            policy=c.scheduling_policy,
            max_queued=c.max_queued,
        )

    def keep(self, *, wait: bool = False) -> None:
        """Has the programs that this start compiled written for the next one; see Compiler.keep."""
        self.table.compiler.keep(wait=wait)

    def keep_next(self) -> bool:
        """Writes one of them, which holds the interpreter's lock meanwhile. False where all are."""
        return self.table.compiler.keep_next()

    def submit(self, plan: EncodePlan) -> EncodeHandle:
        """Enqueues a plan behind what was submitted before; returns without waiting for the device."""
        with self._guard:
            key = self.choose(plan.num_tokens, plan.per_token)
            out = self.table.compiled[key](self._weights, self.table.layout(key).pack(plan.rows))
            out.copy_to_host_async()
        self.programs_run += 1
        return EncodeHandle(plan, key, out)

    def collect(self, handle: EncodeHandle) -> EncodeOutput:
        """Waits for a step and reads what it yielded."""
        with self._guard:
            out = np.asarray(handle.out)
        return EncodeOutput(self.table.read(handle.key, out, handle.plan.rows))

    def choose(self, num_tokens: int, per_token: bool) -> EncodeKey:
        """The least program that serves so many tokens."""
        serving = [key for key in self.table.keys if key.tokens >= num_tokens and key.per_token >= per_token]
        if not serving:
            raise CompileWhileServingError(
                f"no program serves {EncodeKey(num_tokens, per_token)}: the step is larger than the engine was started "
                "for; raise max_num_batched_tokens"
            )
        return min(serving)

    def _warm(self, progress: Progress | None) -> None:
        """Runs every program once, on empty rows: a first run loads and allocates."""
        for done, key in enumerate(self.table.keys, 1):
            packed = np.zeros(self.table.layout(key).size, np.int32)
            jax.block_until_ready(self.table.compiled[key](self._weights, packed))
            if progress is not None:
                progress(done, len(self.table.keys), "warming up")


def _model_info(prepared: _Prepared) -> ModelInfo:
    config, model = prepared.config, prepared.architecture.config
    return ModelInfo(
        name=config.served_model_name[0],
        aliases=config.served_model_name[1:],
        architecture=prepared.architecture.name,
        dtype=config.dtype,
        num_parameters=prepared.plan.parameters,
        vocab_size=model.vocab_size,
        max_model_len=prepared.plan.max_model_len,
        eos_token_ids=model.eos_token_ids,
        max_logprobs=0,
        path=str(weights.resolve_model_path(config.model)),
        generation_defaults={},
        pooling=model.pooling,
        token_types=model.type_vocab_size,
    )
