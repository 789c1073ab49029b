"""`jaxllm plan`: what fits on the device, without loading weights."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import EngineConfig
from jaxllm.progress import progress

if TYPE_CHECKING:
    from jaxllm.runner.plan import MemoryPlan
    from jaxllm.runner.pools import GroupPlan


@command(app, engine=EngineConfig)
def plan(
    engine: Given,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    programs: Annotated[
        bool, typer.Option(help="Compile the whole program table, to list what each program takes.")
    ] = True,
) -> None:
    """Print how the device's memory would be divided: weights, programs, KV cache, and what fits in it."""
    config = engine_config(engine, weights_needed=False)
    from jaxllm.runner import plan_memory

    with progress() as report:
        memory = plan_memory(config, programs=programs, progress=report)
    if as_json:
        derived = {name: getattr(memory, name) for name in ("num_pages", "kv_bytes", "cache_tokens", "largest_batch")}
        print(json.dumps(dataclasses.asdict(memory) | derived, indent=2))
    else:
        _print(memory)


def _print(memory: "MemoryPlan") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    overview = Table(title=f"{memory.model} in {memory.dtype} on {memory.device}", show_header=False)
    budget = "no limit known" if memory.budget_bytes is None else _bytes(memory.budget_bytes)
    for name, value in (
        ("parameters", f"{memory.parameters:,}"),
        ("weights", _bytes(memory.weight_bytes)),
        ("hungriest program", _bytes(memory.program_bytes)),
        *_cache_rows(memory),
        ("budget of the device", budget),
        ("longest context", f"{memory.max_model_len:,} tokens"),
        ("largest batch", f"{memory.max_num_seqs:,} requests"),
    ):
        overview.add_row(name, value)
    console.print(overview)
    if memory.programs:
        table = Table("program", "temporaries", "GFLOP a run", title=f"{len(memory.programs)} programs")
        for program in memory.programs:
            table.add_row(program.name, _bytes(program.temp_bytes), f"{program.flops / 1e9:,.3f}")
        console.print(table)


def _cache_rows(memory: "MemoryPlan") -> Iterator[tuple[str, str]]:
    """What requests keep between steps: nothing, of a model that computes whole sequences."""
    if not memory.groups:
        return
    yield "state of requests", _bytes(memory.state_bytes)
    for plan in memory.groups:
        yield _cache_row(plan, memory.page_size)
    if memory.kv_bytes_per_token:
        yield "KV cache per token", _bytes(memory.kv_bytes_per_token)
    if memory.cache_tokens:
        yield "tokens cached at once", f"{memory.cache_tokens:,}"
    yield "largest batch at the longest context", f"{min(memory.largest_batch, memory.max_num_seqs):,} requests"


def _cache_row(plan: "GroupPlan", page_size: int) -> tuple[str, str]:
    """The name of a cache group, and what it has."""
    window = plan.group.window
    names = {
        "tokens": "KV cache" if window is None else f"KV cache, window of {window:,}",
        "source": "KV cache of sources",
        "state": "recurrent states",
    }
    unit = "entries" if plan.group.kind == "state" else f"pages of {page_size} tokens"
    return names[plan.group.kind], f"{_bytes(plan.bytes)} in {plan.num_pages:,} {unit}"


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:,.4g} GiB"
