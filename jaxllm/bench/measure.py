"""What a process of its own measures of one model, so that the next finds the device empty.

`python -m jaxllm.bench.measure '{"what": "workloads", "model": ..., "engine": {...}, ...}'` prints every row as soon as
it is there, as a line of JSON behind "row ": what a time limit cuts off is lost alone.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from jaxllm.bench import agreement, peers
from jaxllm.bench.workloads import Prompt, Workload, fixed, random_lengths

if TYPE_CHECKING:
    from jaxllm import LLM, SamplingParams
    from jaxllm.bench.trace import DeviceWork
    from jaxllm.engine import Engine
    from jaxllm.engine.engine import StepTimes

TRACED_OUTPUT = 33  # tokens; enough steps to count kernels by
_ROW = "row "


@dataclass(frozen=True, slots=True)
class Family:
    """A model that stands for a kind of block, and what it is given: rows at once for models that generate."""

    shape: str
    kind: Literal["generate", "embed"]
    load: Workload


FAMILIES = {
    "gemma2-9b": Family("windows and soft caps", "generate", Workload(64, 1024, 128)),
    "deepseek-v2-lite": Family("latent attention, mixture", "generate", Workload(64, 1024, 128)),
    "mamba2-2.7b": Family("state space", "generate", Workload(64, 1024, 128)),
    "jamba-8-layers": Family("hybrid with mixture", "generate", Workload(64, 1024, 128)),
    "gpt-oss-20b": Family("sinks, windows, mixture", "generate", Workload(64, 1024, 128)),
    "t5-large": Family("encoder-decoder", "generate", Workload(64, 512, 64)),
    "bert-large": Family("encoder", "embed", Workload(10000, 32, 0)),
}


def workloads(llm: "LLM", model: str, chosen: Mapping[str, Workload], repeats: int, seed: int) -> Iterator[dict]:
    """A row for each workload: seconds beside vLLM's and the floor, steps and where their time went."""
    from jaxllm.bench import offline

    for name, workload in chosen.items():
        runs = [fixed(workload, llm.engine.info.vocab_size, seed + i) for i in range(repeats)]
        row = offline.throughput_row(name, runs, [offline.throughput(llm, prompts) for prompts in runs])
        yield {"model": model, **asdict(workload)} | row | peers.beside(model, name, row["seconds"])


def profile(
    llm: "LLM", model: str, chosen: Mapping[str, Workload], seed: int, *, command_buffers: bool
) -> Iterator[dict]:
    """Rows with the command buffers of a step or, in a process that has none, its kernels and their time.

    Of workloads that decode it is the decoding that counts, shortened to a few steps.
    """
    from jaxllm.bench.trace import traced

    for name, workload in chosen.items():
        shortened = replace(workload, num_output=min(workload.num_output, TRACED_OUTPUT))
        prompts = fixed(shortened, llm.engine.info.vocab_size, seed)
        found: list[DeviceWork | None] = []

        def trace(run: Callable[[], None], found: list = found) -> None:
            found.append(traced(run))

        times = drive(llm.engine, prompts, trace).times
        # What was in flight before had run by the time that the profiler watched.
        row: dict[str, Any] = {"model": model, "workload": name, "traced_steps": times.submitted}
        (work,) = found
        if work is not None and command_buffers:
            row |= {"command_buffers_per_step": work.launches / times.submitted}
        elif work is not None:
            slowest = sorted(work.kernels.items(), key=lambda item: -item[1][1])[:12]
            row |= {
                "kernels_per_step": work.num_kernels / times.submitted,
                "busy_ms_per_step": work.busy / times.submitted * 1000,
                "slowest_kernels": [
                    {"kernel": kernel[:120], "count": count, "ms": seconds * 1000}
                    for kernel, (count, seconds) in slowest
                ],
            }
        yield row


def family(llm: "LLM", model: str, chosen: Family, seed: int) -> dict[str, Any]:
    """One row: what a kind of block reaches, the share of what memory, or arithmetic, would allow, and which
    implementations served its operations."""
    load, vocab_size = chosen.load, llm.engine.info.vocab_size
    prompts = random_lengths(
        load.num_requests, load.num_prompt, max(1, load.num_output), vocab_size=vocab_size, seed=seed
    )
    row: dict[str, Any] = {"model": model, "block": chosen.shape, **asdict(load), "backends": _backends()}
    if chosen.kind == "embed":
        from jaxllm.bench import offline

        seconds = min(offline.embed(llm, prompts) for _ in range(2))
        tokens = sum(len(prompt.token_ids) for prompt in prompts)
        floor = 2 * _weight_bytes(llm) / _itemsize(llm) * tokens / peers.FLOPS
        row |= {"seconds": seconds, "prompts_per_s": len(prompts) / seconds, "prompt_tokens_per_s": tokens / seconds}
        return row | {"floor_seconds": floor, "share_of_floor": floor / seconds}
    drive(llm.engine, prompts, params=_sampled)  # the first run may still record command buffers
    driven = drive(llm.engine, prompts, params=_sampled)
    steps = driven.times.steps
    step, rows = driven.seconds / steps, driven.tokens / steps  # those that began last end last, in steps of few rows
    floor = step_bytes(llm, load, rows) / peers.BANDWIDTH
    row |= {"decode_tokens_per_s": driven.tokens / driven.seconds, "rows_per_step": rows}
    row |= {"step_ms": step * 1000, "floor_ms": floor * 1000}
    host = {"host_ms_per_step": driven.times.host / steps * 1000}
    return row | host | {"share_of_floor": floor / step}


def _sampled(num_output: int) -> "SamplingParams":
    """Greedy rows of random weights soon say the same, and a mixture's would all go to the same few experts."""
    from jaxllm.bench.offline import greedy

    return replace(greedy(num_output), temperature=1.0)


def _backends() -> dict[str, list[str]]:
    """By operation those that programs of this process call."""
    from pallas_kernels import choose

    found: dict[str, set[str]] = {}
    for choice in choose.choices():
        found.setdefault(choice.operation, set()).add(choice.backend)
    return {operation: sorted(backends) for operation, backends in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class Driven:
    """What was measured of a run. tokens: that came meanwhile."""

    seconds: float
    tokens: int
    times: "StepTimes"


def drive(
    engine: "Engine",
    prompts: Sequence[Prompt],
    around: Callable[[Callable[[], None]], None] | None = None,
    params: Callable[[int], "SamplingParams"] | None = None,
) -> Driven:
    """Runs the prompts to their ends, and measures from where every request has its first token, or the whole where
    they yield one token each. around: called with that part, which it has to run. params: of so many tokens, greedy
    where it is None."""
    from jaxllm.bench.offline import check_lengths, greedy

    counts: dict[str, int] = {}
    for prompt in prompts:
        request = engine.make_request(prompt.token_ids, (params or greedy)(prompt.num_output))
        counts[request.request_id] = 0
        engine.add(request)

    def step() -> None:
        for delta in engine.step():
            counts[delta.request_id] += len(delta.token_ids)

    def rest() -> None:
        while engine.has_work:
            step()

    decodes = max(prompt.num_output for prompt in prompts) > 1
    while decodes and engine.has_work and not all(counts.values()):
        step()
    before, known, began = replace(engine.times), sum(counts.values()), time.perf_counter()
    if around is None:
        rest()
    else:
        around(rest)
    seconds, times = time.perf_counter() - began, engine.times.since(before)
    check_lengths(counts.values(), prompts)
    return Driven(seconds, sum(counts.values()) - known, times)


def step_bytes(llm: "LLM", load: Workload, rows: float) -> float:
    """Bytes that a decode step of so many rows reads and writes: the weights that it meets, and of each row the cache
    at the middle of its output. All experts count, also those that random weights leave out."""
    plan = _runner(llm).memory_plan
    context = load.num_prompt + load.num_output / 2
    if llm.engine.info.decoder_start is not None:  # of an encoder-decoder the prompt is the source
        context = load.num_output / 2
    cache = 0.0
    for share in plan.groups:
        if share.group.kind == "state":
            cache += 2 * share.page_bytes  # read and written
        else:
            tokens = load.num_prompt if share.group.kind == "source" else context
            cache += min(tokens, share.group.window or tokens) * share.page_bytes / plan.page_size
    return _weight_bytes(llm) + rows * cache


def _weight_bytes(llm: "LLM") -> int:
    """Of the weights that every token meets: an embedding that is no head as well is looked up, and what an
    encoder-decoder makes of its source was made before."""
    from jaxllm import weights

    config = weights.read_config(weights.resolve_model_path(llm.engine.config.model))
    tied = config.get("tie_word_embeddings", True) and llm.engine.info.pooling is None
    size = config.get("hidden_size", config.get("d_model", 0))
    embedding = 0 if tied else llm.engine.info.vocab_size * size * _itemsize(llm)
    return int(_runner(llm).memory_plan.weight_bytes) - embedding - _source_bytes(llm)


def _source_bytes(llm: "LLM") -> int:
    """Of the weights that an encoder-decoder's source meets alone: the encoder, and each layer's keys and values of
    it."""
    if llm.engine.info.decoder_start is None:
        return 0
    from jaxllm.layers.parameter import parameters
    from jaxllm.runner.plan import find_architecture

    model = find_architecture(llm.engine.config).build(llm.engine.config.dtype)
    named = parameters(model).items()
    return _itemsize(llm) * sum(
        parameter.size for name, parameter in named if name.startswith("encoder") or ".cross.kv." in name
    )


def _itemsize(llm: "LLM") -> int:
    return 4 if llm.engine.config.dtype == "float32" else 2


def _runner(llm: "LLM") -> Any:
    return llm.engine.runner


def compile_all(model: str, engine: dict[str, Any]) -> dict[str, Any]:
    """One row: every program of an engine, compiled and kept for its starts; weights and cache take no memory."""
    from jaxllm.bench.shapes import model_directory
    from jaxllm.config import EngineConfig
    from jaxllm.runner import plan_memory

    began = time.perf_counter()
    plan = plan_memory(EngineConfig.from_kwargs(model=model_directory(model), **engine), programs=True)
    return {"model": model, "programs": len(plan.programs), "seconds": time.perf_counter() - began}


def _main(order: dict[str, Any]) -> None:
    from jaxllm import LLM
    from jaxllm.bench.shapes import model_directory

    model, seed = order["model"], order["seed"]
    if order["what"] == "compile":
        print(_ROW + json.dumps(compile_all(model, order["engine"])), flush=True)
        return
    with LLM(model_directory(model), **order["engine"]) as llm:
        llm.engine.keep(wait=True)  # which would disturb what is measured
        chosen = {name: Workload(*lengths) for name, lengths in order.get("workloads", {}).items()}
        match order["what"]:
            case "workloads":
                rows = workloads(llm, model, chosen, order["repeats"], seed)
            case "profile":
                rows = profile(llm, model, chosen, seed, command_buffers=order["command_buffers"])
            case "family":
                found = FAMILIES[model] if model in FAMILIES else Family("as given", "generate", Workload(2, 8, 4))
                rows = iter([family(llm, model, replace(found, load=Workload(*order["load"])), seed)])
            case "tokens":
                drawn = agreement.draw(llm, order["num_prompt"], order["num_output"])
                rows = iter([{"drawn": [asdict(row) for row in drawn], "backends": _backends()}])
        for row in rows:
            print(_ROW + json.dumps(row), flush=True)


def rows_of(lines: Sequence[str]) -> list[dict[str, Any]]:
    """The rows among the lines that such a process printed."""
    return [json.loads(line.removeprefix(_ROW)) for line in lines if line.startswith(_ROW)]


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
