"""Memory is planned, not probed: what weights, state, programs and the KV cache take, before anything runs."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import weights
from jaxllm.config import EngineConfig
from jaxllm.core import elements_per_token, groups_of
from jaxllm.errors import ConfigError
from jaxllm.models import registry
from jaxllm.runner import estimate, executables
from jaxllm.runner.compiling import Compiler, ProgramCost, Progress
from jaxllm.runner.drawing import VARIANTS
from jaxllm.runner.pools import Demand, GroupPlan, divide, exactly, least
from jaxllm.runner.programs import FlatModel, Geometry, Programs
from jaxllm.runner.resolve import claim_memory, device_budget, for_weights, given, on_gpu, resolve
from jaxllm.runner.table import ProgramTable, closed_table, use_compilation_cache
from jaxllm.runner.tables import BlockTables
from jaxllm.runner.workers import Order, Workers
from jaxllm.sampling import make_processors

log = logging.getLogger(__name__)

DEFAULT_CPU_CACHE = 256 << 20
MARGIN = 64
"""One part in so many of the device is left for fragmentation."""


@dataclass(frozen=True)
class MemoryPlan:
    """How the device's memory is divided. Bytes throughout; budget_bytes is None where the device sets no limit.

    program_bytes: of the hungriest program: reckoned from its trace until the table is compiled, then as compiled; 0
    where the pool's size did not depend on it and nothing was compiled.
    groups: what each cache group has; kv_bytes_per_token is of all that have pages of tokens. programs: the table, as
    far as it is compiled.
    """

    model: str
    device: str
    dtype: str
    parameters: int
    weight_bytes: int
    state_bytes: int
    program_bytes: int
    budget_bytes: int | None
    kv_bytes_per_token: int
    page_size: int
    groups: tuple[GroupPlan, ...]
    max_model_len: int
    max_num_seqs: int
    programs: tuple[ProgramCost, ...] = ()

    @property
    def kv_bytes(self) -> int:
        """Of the whole cache."""
        return sum(plan.bytes for plan in self.groups)

    @property
    def program_limit(self) -> int | None:
        """Bytes that a program can have beside all else; None where the device sets no limit."""
        if self.budget_bytes is None:
            return None
        return available(self.budget_bytes) - self.weight_bytes - self.state_bytes - self.kv_bytes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pages of each group's pools."""
        return tuple(plan.num_pages for plan in self.groups)

    @property
    def num_pages(self) -> int:
        """Pages of tokens, the padding page included: of whole contexts, where any are held; 0 where there are none."""
        return next((plan.num_pages for plan in self.groups if plan.group.kind == "tokens"), 0)

    @property
    def cache_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return max(0, self.num_pages - 1) * self.page_size

    @property
    def largest_batch(self) -> int:
        """Requests of max_model_len that fit at once."""
        pages = -(-self.max_model_len // self.page_size)
        fit = [(plan.num_pages - 1) // least(plan.group, pages, self.page_size) for plan in self.groups]
        return min(fit, default=self.max_num_seqs)


@dataclass
class Prepared:
    """An engine's programs before its weights: the abstract model, the sizes decided for it, and its table.

    again: all of it once more, for programs that take so many bytes. workers: processes that may help to compile.
    """

    config: EngineConfig
    architecture: registry.Architecture
    model: Any
    flat: FlatModel
    table: ProgramTable
    plan: MemoryPlan
    again: Callable[[int], "Prepared"]
    workers: Workers | None


class TooHungryError(Exception):
    """A program takes more than the plan has for it."""

    def __init__(self, cost: ProgramCost):
        super().__init__(f"{cost.name} takes {show(cost.temp_bytes)}")
        self.cost = cost


def plan_memory(
    config: EngineConfig, *, model_class: Any = None, programs: bool = False, progress: Progress | None = None
) -> MemoryPlan:
    """The memory plan of an engine, without loading its weights.

    programs: compile the whole table for its costs; otherwise what programs take is reckoned from their traces.
    """
    prepared = prepare(config, model_class=model_class, measure=True)
    if programs:
        prepared = compile_table(prepared, progress)
        prepared.table.compiler.keep()
        return with_costs(prepared.plan, prepared.table)
    return prepared.plan


def compile_table(prepared: Prepared, progress: Progress | None = None) -> Prepared:
    """Compiles an engine's programs; where one takes more than was reckoned, once more for a smaller cache.

    The hungriest come first, so that what is compiled for nothing is little.
    """
    while True:
        limit, beside = prepared.plan.program_limit, prepared.table.mask_bytes

        def check(cost: ProgramCost, limit: int | None = limit, beside: int = beside) -> None:
            if limit is not None and cost.temp_bytes + beside > limit:
                raise TooHungryError(cost)

        try:
            prepared.table.compile(prepared.plan.sizes, progress, check, prepared.workers)
        except TooHungryError as error:
            free, cache = show(max(0, limit or 0)), prepared.plan.kv_bytes
            smaller = prepared.again(error.cost.temp_bytes + beside)
            if smaller.plan.kv_bytes >= cache:
                raise ConfigError(
                    f"{error}, and {free} are free beside a cache of {show(cache)}, as was asked for: lower "
                    "kv_cache_memory_bytes, num_gpu_blocks_override or max_num_batched_tokens, or raise "
                    "gpu_memory_utilization"
                ) from None
            log.warning(
                "%s, %s were reckoned and %s are free beside a cache of %s: planning a smaller cache",
                error, show(prepared.plan.program_bytes), free, show(cache),
            )  # fmt: skip
            prepared = smaller
        else:
            return prepared


def find_architecture(config: EngineConfig, model_class: Any = None) -> registry.Architecture:
    """What the checkpoint and the task make of it; sentence-transformers' files say how an embedding model pools."""
    path = weights.resolve_model_path(config.model)
    values, described = weights.read_config(path), weights.read_sentence_transformer(path)
    found = registry.resolve(values, model_class, config.task)
    if described is None:
        return found
    if found.config.pooling is None and config.task == "auto":
        found = registry.resolve(values, model_class, "embed")
    pooling = found.config.pooling
    if pooling is None or pooling.task != "embed":
        return found
    activation: Any = "normalize" if described.normalize else "none"
    pooling = dataclasses.replace(
        pooling, sequence=described.sequence, activation=activation, lower_case=described.lower_case
    )
    return dataclasses.replace(found, config=dataclasses.replace(found.config, pooling=pooling))


def prepare(
    config: EngineConfig,
    *,
    model_class: Any = None,
    measure: bool = False,
    program_bytes: int | None = None,
    compiler: Compiler | None = None,
) -> Prepared:
    """Reads the model's configuration, resolves the engine's and sizes the pool.

    measure: reckon what programs take even where the pool's size does not depend on it. program_bytes: what they are
    known to take. compiler: what is to build them.
    """
    claim_memory(config)
    directory = use_compilation_cache(config.compilation_cache_dir)
    architecture = find_architecture(config, model_class)
    resolved = resolve(config, architecture.config)
    dtype = jnp.dtype(resolved.dtype)
    model = architecture.within(given(resolved.max_model_len)).build(dtype)
    flat = FlatModel.of(model)
    specs = model.cache_specs()
    token_bytes = elements_per_token(specs) * dtype.itemsize
    weight_bytes = size_of(flat.leaves)
    budget = device_budget(resolved)
    sparse = architecture.config.mixture is not None
    resolved = for_weights(config, resolved, weight_bytes, budget=budget, sparse=sparse)
    processors = make_processors(architecture.config.vocab_size, resolved.logits_processors)
    if compiler is None:
        compiler = Compiler(kept_programs(directory, resolved, type(model)))
    wants_all = config.num_gpu_blocks_override is None and config.kv_cache_memory_bytes is None and budget is not None

    def build(max_model_len: int) -> tuple[ProgramTable, int]:
        """The table for a context length, and the bytes of its state."""
        geometry = Geometry(
            max_num_seqs=given(resolved.max_num_seqs),
            page_size=resolved.block_size,
            tables=BlockTables(groups_of(specs), resolved.block_size, -(-max_model_len // resolved.block_size)),
            vocab_size=architecture.config.vocab_size,
            num_logprobs=min(resolved.max_logprobs, architecture.config.vocab_size),
            logprobs_mode=resolved.logprobs_mode,
            processors=processors,
            specs=specs,
        )
        keys = closed_table(
            geometry.max_num_seqs, given(resolved.max_num_batched_tokens), given(resolved.decode_steps), gpu=on_gpu(),
            sources=any(group.kind == "source" for group in geometry.tables.groups),
        )  # fmt: skip
        table = ProgramTable(Programs(flat, geometry), keys, flat.leaves, dtype, compiler)
        return table, size_of(geometry.state_shapes)

    max_model_len = given(resolved.max_model_len)
    table, state_bytes = build(max_model_len)
    kept = compiler.kept if isinstance(compiler.kept, executables.Store) else None
    if program_bytes is None:
        program_bytes = _known_or_reckoned(table, kept) if wants_all or measure else 0
    geometry = table.programs.geometry
    demand = Demand(
        max_num_seqs=geometry.max_num_seqs,
        max_num_batched_tokens=given(resolved.max_num_batched_tokens),
        decode_steps=max(given(resolved.decode_steps)),
        page_size=resolved.block_size,
        max_pages=geometry.tables.max_pages,
        prefixes=config.enable_prefix_caching,
        # Running requests use no more. On a GPU the rest keeps prefixes for those to come.
        bounded=budget is None or not config.enable_prefix_caching,
    )
    groups = tuple(GroupPlan(group, geometry.page_bytes(i, dtype)) for i, group in enumerate(geometry.tables.groups))
    if config.num_gpu_blocks_override is not None:
        groups = exactly(groups, demand, config.num_gpu_blocks_override)
    else:
        if wants_all:
            assert budget is not None
            cache_bytes = max(0, available(budget) - weight_bytes - state_bytes - program_bytes)
        else:
            cache_bytes = config.kv_cache_memory_bytes or DEFAULT_CPU_CACHE + demand.state_bytes(groups)
        groups = divide(groups, demand, cache_bytes, rounded=wants_all)

    short = [g.num_pages for g in groups if g.group.kind != "state" and g.num_pages - 1 < demand.least(g.group)]
    if short:
        pages = min(short)
        held = max(0, pages - 1) * resolved.block_size
        if config.max_model_len is not None or held == 0:
            raise ConfigError(
                f"the KV cache holds {held} tokens ({pages} pages of {resolved.block_size}, one of them padding), "
                f"fewer than one request of max_model_len={max_model_len}: weights {show(weight_bytes)}, state "
                f"{show(state_bytes)}, programs {show(program_bytes)}, a token {show(token_bytes)}"
                f"{f', of {show(budget)}' if budget else ''}. Lower max_model_len or max_num_batched_tokens, or raise "
                "gpu_memory_utilization, kv_cache_memory_bytes or num_gpu_blocks_override"
            )
        log.warning("max_model_len lowered from %d to %d: the KV cache holds no more", max_model_len, held)
        max_model_len = held
        table, state_bytes = build(max_model_len)

    plan = MemoryPlan(
        model=resolved.served_model_name[0],
        device=jax.devices()[0].device_kind,
        dtype=resolved.dtype,
        parameters=sum(leaf.size for leaf in flat.leaves),
        weight_bytes=weight_bytes,
        state_bytes=state_bytes,
        program_bytes=program_bytes,
        budget_bytes=budget,
        kv_bytes_per_token=token_bytes,
        page_size=resolved.block_size,
        groups=groups,
        max_model_len=max_model_len,
        max_num_seqs=given(resolved.max_num_seqs),
    )
    resolved = resolved.replace(max_model_len=max_model_len, kv_cache_memory_bytes=plan.kv_bytes)

    def again(program_bytes: int) -> Prepared:
        if kept is not None:
            kept.keep_program_bytes(program_bytes)
        return prepare(config, model_class=model_class, program_bytes=program_bytes, compiler=compiler)

    # What the device's memory decides is said: a worker's own view of it decides nothing.
    asked = config.replace(
        kv_cache_memory_bytes=plan.kv_bytes or None, max_num_batched_tokens=resolved.max_num_batched_tokens
    )
    workers, count = None, given(resolved.compile_workers)
    if kept is not None and count:
        workers = Workers(count, Order(asked, model_class, plan.sizes, kept.identity, kept.flags))
    return Prepared(resolved, architecture, model, flat, table, plan, again, workers)


def with_costs(plan: MemoryPlan, table: ProgramTable) -> MemoryPlan:
    """The plan with what the table's compiled programs take."""
    costs = tuple(cost for _, cost in sorted(table.costs.items()))
    if not costs:
        return plan
    hungriest = max(cost.temp_bytes for cost in costs)
    return dataclasses.replace(plan, programs=costs, program_bytes=hungriest + table.mask_bytes)


def kept_programs(directory: Path | None, config: EngineConfig, model_class: type) -> executables.Store | None:
    """Where an engine's executables outlast it; None where JAX's compilation cache has to do.

    So it does for code that is not this package's own, which nothing here could tell a change of.
    """
    foreign = [*config.logits_processors] or not model_class.__module__.startswith("jaxllm.")
    if directory is None or foreign:
        return None
    path = weights.resolve_model_path(config.model)
    indifferent = (
        "model", "tokenizer", "served_model_name", "load_format", "seed", "gpu_memory_utilization", "scheduling_policy",
        "max_queued", "stream_interval_ms", "compilation_cache_dir", "kv_cache_memory_bytes", "num_gpu_blocks_override",
        "generation_config", "override_generation_config", "compile_workers",
    )  # fmt: skip
    engine = {name: value for name, value in dataclasses.asdict(config).items() if name not in indifferent}
    described = weights.read_sentence_transformer(path)
    identity = executables.identity(
        jax.devices()[0], model=weights.read_config(path), class_=repr(model_class), engine=engine,
        described=repr(described),
    )  # fmt: skip
    return executables.Store.open(directory / "executables", identity)


def _known_or_reckoned(table: ProgramTable, kept: executables.Store | None) -> int:
    """Of the programs, as an earlier start had it: tracing them again takes seconds."""
    if kept is not None and (known := kept.program_bytes()) is not None:
        return known
    found = _program_bytes(table)
    if kept is not None:
        kept.keep_program_bytes(found)
    return found


def _program_bytes(table: ProgramTable) -> int:
    """Bytes of temporaries and outputs of the hungriest program, the largest that does the most of each kind, and of
    what lies beside it."""
    demanding = [
        max(
            (key for key in table.keys if (key.kind, key.forward) == group),
            key=lambda key: (VARIANTS.index(key.variant), key.size, key.steps),
        )
        for group in {(key.kind, key.forward) for key in table.keys if key.kind != "seed"}
    ]
    tables = table.programs.geometry.tables
    sizes = [tables.max_pages + 1] * len(tables.groups)  # any pool does: what a program takes beside it is the same
    jobs = [table.job(key, sizes) for key in demanding]
    hungriest = max(estimate.program_bytes(job.function, job.arguments, job.donated) for job in jobs)
    return hungriest + table.mask_bytes


def available(budget: int) -> int:
    """Bytes of a device's budget that are planned with; the rest is for fragmentation."""
    return budget - budget // MARGIN


def size_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def show(size: int) -> str:
    """Bytes for people."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"
