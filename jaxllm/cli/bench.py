"""`jaxllm bench`: throughput of generation and of embedding, latency, serving under load, start-up."""

import dataclasses
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxllm import __version__
from jaxllm.cli.command import Given, app, arguments, command, engine_config, print_error, print_table
from jaxllm.config import OFFLINE_INTERVAL_MS, EngineConfig
from jaxllm.errors import ConfigError
from jaxllm.progress import progress

if TYPE_CHECKING:
    from jaxllm.bench.workloads import Prompt

bench = typer.Typer(
    help="Measure throughput, embedding, latency, serving under load, and start-up.", no_args_is_help=True
)
app.add_typer(bench, name="bench")

NUM_PROMPTS = Annotated[int, typer.Option(min=1, help="Number of requests, unless --workload says.")]
INPUT_LEN = Annotated[int, typer.Option(min=1, help="Tokens of each random prompt.")]
OUTPUT_LEN = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens each request yields: 128, or as long as the answer in --dataset-path."),
]
RANGE_RATIO = Annotated[
    float,
    typer.Option(min=0, max=1, help="Random lengths vary evenly by this share around --input-len and --output-len."),
]
DATASET = Annotated[Path | None, typer.Option(help="Take prompts from a ShareGPT-format JSON file instead.")]


def _writable(path: Path | None) -> Path | None:
    """Told before anything is measured for it."""
    if path is not None and not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written; name a file in a folder that is there and yours")
    return path


OUTPUT_JSON = Annotated[
    Path | None, typer.Option(dir_okay=False, callback=_writable, help="Write the figures to this file.")
]
PLOT = Annotated[
    Path | None,
    typer.Option(dir_okay=False, callback=_writable, help="Draw the figures into this PNG file (needs jaxllm[plot])."),
]

LONG_INPUT_LEN = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of each random prompt: 1024, or what the context holds beside the output."),
]

DEFAULT_INPUT_LEN = 1024
DEFAULT_OUTPUT_LEN = 128
DEFAULT_VOCAB_SIZE = 32000


@command(
    bench, engine=EngineConfig, defaults={"enable_prefix_caching": False, "stream_interval_ms": OFFLINE_INTERVAL_MS}
)
def throughput(
    engine: Given,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="A fixed workload: single, batch8, decode64, mixed256, prefill, long, or all; repeatable."),
    ] = None,
    num_prompts: NUM_PROMPTS = 64,
    input_len: LONG_INPUT_LEN = None,
    output_len: OUTPUT_LEN = None,
    range_ratio: RANGE_RATIO = 0.0,
    dataset_path: DATASET = None,
    structured: Annotated[
        bool, typer.Option(help="Run each workload again with answers held to a JSON schema, and compare.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each workload; the best one counts.")] = 2,
    output_json: OUTPUT_JSON = None,
    plot: PLOT = None,
) -> None:
    """Run workloads through the offline API as fast as they go; every output token is counted."""
    _check_plot(plot)
    if workload and dataset_path:
        raise ConfigError("--workload and --dataset-path each say what to run: give one of them")
    config = engine_config(engine)
    from jaxllm import LLM
    from jaxllm.bench import offline, workloads
    from jaxllm.structured_outputs import StructuredOutputs

    lengths = (num_prompts, input_len, output_len, range_ratio, dataset_path)
    sources = {name: _source(config, *lengths, name) for name in workloads.named(workload or [])}
    if not sources:
        sources = {"dataset" if dataset_path else "random": _source(config, *lengths)}
    rows = []
    with progress() as report:
        llm = LLM(**vars(config), progress=report)
        llm.engine.keep(wait=True)  # which would disturb what is measured
        info = llm.engine.info
        for count, (name, source) in enumerate(sources.items()):
            report(count, len(sources), "workloads")
            runs = [source(info.vocab_size, info.max_model_len, config.seed + i) for i in range(repeats)]
            for prompts in runs:
                workloads.check_fit(prompts, info)
            measured = [offline.throughput(llm, prompts) for prompts in runs]
            rows.append(free := offline.throughput_row(name, runs, measured))
            if structured:
                form = StructuredOutputs(json=workloads.SCHEMA, disable_any_whitespace=True)
                measured = [offline.throughput(llm, prompts, form) for prompts in runs]
                rows.append(held := offline.throughput_row(f"{name}, structured", runs, measured))
                held["share_of_free"] = held["output_tokens_per_s"] / free["output_tokens_per_s"]
        report(len(sources), len(sources), "workloads")
    columns = (
        "workload", "requests", "seconds", "requests_per_s", "output_tokens_per_s", "total_tokens_per_s",
        "host_ms_per_step", "device_ms_per_step",
    )  # fmt: skip
    _print_table((*columns, "share_of_free") if structured else columns, rows)
    _write(output_json, "throughput", config, rows, {"device": _device()})
    if plot:
        from jaxllm.bench.plot import plot_bars

        plot_bars(
            plot, f"{config.model}: throughput", "tokens/s", {r["workload"]: r["total_tokens_per_s"] for r in rows}
        )


@command(bench, engine=EngineConfig, defaults={"task": "embed"})
def embed(
    engine: Given,
    num_prompts: NUM_PROMPTS = 10000,
    input_len: INPUT_LEN = 32,
    range_ratio: RANGE_RATIO = 0.5,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; the best one counts.")] = 2,
    output_json: OUTPUT_JSON = None,
) -> None:
    """Embed random texts through the offline API as fast as it goes."""
    config = engine_config(engine)
    from jaxllm import LLM
    from jaxllm.bench import offline

    source = _source(config, num_prompts, input_len, 1, range_ratio, None)
    with progress() as report:
        llm = LLM(**vars(config), progress=report)
        llm.engine.keep(wait=True)  # which would disturb what is measured
        info = llm.engine.info
        runs = [source(info.vocab_size, info.max_model_len, config.seed + i) for i in range(repeats)]
        seconds = []
        for count, prompts in enumerate(runs):
            report(count, repeats, "runs")
            seconds.append(offline.embed(llm, prompts))
        report(repeats, repeats, "runs")
    rows = [_embedding_row(runs, seconds)]
    _print_table(("workload", "requests", "seconds", "requests_per_s", "prompt_tokens_per_s"), rows)
    _write(output_json, "embed", config, rows, {"device": _device()})


@command(bench, engine=EngineConfig, defaults={"enable_prefix_caching": False})
def latency(
    engine: Given,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests of the batch.")] = 8,
    input_len: INPUT_LEN = 32,
    output_len: OUTPUT_LEN = None,
    num_iters_warmup: Annotated[int, typer.Option(min=0, help="Batches run first and not counted.")] = 2,
    num_iters: Annotated[int, typer.Option(min=1, help="Batches counted.")] = 10,
    output_json: OUTPUT_JSON = None,
    plot: PLOT = None,
) -> None:
    """Run one batch at a time: seconds for the whole, to the first token, and per step after it."""
    _check_plot(plot)
    config = engine_config(engine)
    from jaxllm.bench import offline, statistics, workloads
    from jaxllm.engine import Engine

    num_output = output_len or DEFAULT_OUTPUT_LEN
    batches, records = [], []
    with progress() as report:
        running = Engine.start(config, progress=report)
        running.keep(wait=True)  # which would disturb what is measured
        for index in range(num_iters_warmup + num_iters):
            report(index, num_iters_warmup + num_iters, "batches")
            prompts = workloads.random_lengths(
                batch_size, input_len, num_output, vocab_size=running.info.vocab_size, seed=config.seed + index
            )
            workloads.check_fit(prompts, running.info)
            batch, seconds = offline.run_batch(running, prompts)
            if index >= num_iters_warmup:
                batches.append(seconds)
                records += batch
        report(num_iters_warmup + num_iters, num_iters_warmup + num_iters, "batches")
    values = statistics.samples(records)
    shown = {"batch latency": batches, "time to first token": values["ttft"], "step": values["tpot"]}
    rows = [
        {"metric": name, **{f"{k}_ms": v for k, v in statistics.summarise(seconds).items()}}
        for name, seconds in shown.items()
        if seconds  # no step follows a first token that is the last
    ]
    _print_table(("metric", "mean_ms", "median_ms", "std_ms", "p90_ms", "p99_ms"), rows)
    load = {
        "device": _device(),
        "batch_size": batch_size,
        "input_len": input_len,
        "output_len": num_output,
        "iterations": num_iters,
    }
    _write(output_json, "latency", config, rows, load)
    if plot:
        from jaxllm.bench.plot import plot_distributions

        plot_distributions(plot, f"{config.model}: batch of {batch_size}", {k: v for k, v in shown.items() if v})


@command(bench, engine=EngineConfig, defaults={"enable_prefix_caching": False})
def serve(
    engine: Given,
    target: Annotated[
        str | None,
        typer.Option(help="A server that is up: grpc://HOST:PORT or http://HOST:PORT. One is started otherwise."),
    ] = None,
    protocol: Annotated[
        Literal["grpc", "http"], typer.Option(help="What to speak to the server started here: grpc or http.")
    ] = "grpc",
    workload: Annotated[str | None, typer.Option(help="A fixed workload's lengths and number of requests.")] = None,
    num_prompts: NUM_PROMPTS = 200,
    input_len: LONG_INPUT_LEN = None,
    output_len: OUTPUT_LEN = None,
    range_ratio: RANGE_RATIO = 0.0,
    dataset_path: DATASET = None,
    request_rate: Annotated[float, typer.Option(help="Requests per second, a Poisson process; inf is all at once.")] = (
        float("inf")
    ),
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Requests open at once at most.")] = None,
    num_warmups: Annotated[int, typer.Option(min=0, help="Requests sent first and not counted.")] = 1,
    client_processes: Annotated[int | None, typer.Option(min=1, help="Processes that send the load.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=2, help="Random ids stay below it; asked over gRPC, 32000 over HTTP by default.")
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="An objective, METRIC:MILLISECONDS with ttft, tpot or e2el; repeatable."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="A key of the server's; the first that JAXLLM_API_KEY holds by default.")
    ] = None,
    output_json: OUTPUT_JSON = None,
    plot: PLOT = None,
) -> None:
    """Drive a served engine with streams at a rate or a concurrency, over gRPC or the OpenAI HTTP API."""
    _check_plot(plot)
    from jaxllm.bench import statistics
    from jaxllm.bench.clients import Target, describe
    from jaxllm.bench.load import run_load
    from jaxllm.bench.server_process import started_server

    objectives = statistics.parse_objectives(goodput or [])
    without_effect = sorted(
        name
        for name in engine.keys() - {"model", "tokenizer", "served_model_name", "seed", "enable_prefix_caching"}
        if engine.origins.get(name, "").startswith("--")  # what the environment or a file says may be for others
    )
    if target and without_effect:
        raise ConfigError(f"{', '.join(without_effect)}: has no effect on a server that is up; drop it or --target")
    if not request_rate > 0:
        raise ConfigError(f"--request-rate {request_rate}: must be positive; inf sends all at once")
    config = engine_config(engine)
    key = api_key or os.environ.get("JAXLLM_API_KEY", "").partition(",")[0].strip()
    make = _source(config, num_prompts, input_len, output_len, range_ratio, dataset_path, workload)
    with ExitStack() as stack:
        if target:
            served = Target.parse(target, next(iter(config.served_model_name), ""), key)
            model = describe(served)
        else:
            addresses = stack.enter_context(started_server(arguments({**engine, "model": config.model})))
            model = describe(Target.parse(f"grpc://{addresses['grpc']}", api_key=key))
            address = addresses["http"] if protocol == "http" else f"grpc://{addresses['grpc']}"
            served = Target.parse(address, api_key=key)
        served = dataclasses.replace(served, model=served.model or model.name)
        known_ids = vocab_size or model.vocab_size
        ids = known_ids or DEFAULT_VOCAB_SIZE
        max_len = model.max_model_len or 2**31
        prompts = make(ids, max_len, config.seed)
        if num_warmups:
            run_load(served, make(ids, max_len, config.seed + 1)[:num_warmups], num_processes=1)
        report = stack.enter_context(progress())
        records, seconds = run_load(
            served,
            prompts,
            request_rate=request_rate,
            max_concurrency=max_concurrency,
            num_processes=client_processes,
            seed=config.seed,
            report=report,
        )
    row = statistics.report(records, seconds, objectives)
    for error in sorted({record.error for record in records if record.error})[:5]:
        print_error(f"failed requests: {error}")
    if not known_ids and not dataset_path and any(record.error for record in records):
        print_error(f"the server does not say how many tokens it knows: --vocab-size does ({ids} was taken)")
    _print_figures(row)
    load = {
        "target": target or f"started, {protocol}",
        "request_rate": request_rate if math.isfinite(request_rate) else "inf",
        "max_concurrency": max_concurrency,
        "workload": workload,
        "num_prompts": len(prompts),
    }
    _write(output_json, "serve", config, [row], load)
    if plot:
        from jaxllm.bench.plot import plot_distributions

        plot_distributions(
            plot, f"{served.model}: {row['output_throughput']:.0f} tokens/s", statistics.samples(records)
        )


@command(bench, engine=EngineConfig)
def startup(engine: Given, output_json: OUTPUT_JSON = None, plot: PLOT = None) -> None:
    """Start the engine twice in fresh processes, with an empty and with a filled compilation cache."""
    _check_plot(plot)
    from jaxllm.bench.startup import start_once

    if engine.origins.get("compilation_cache_dir", "").startswith("--"):
        raise ConfigError("compilation_cache_dir: this benchmark uses an empty directory of its own; drop the option")
    config = engine_config(engine)
    rows = []
    with tempfile.TemporaryDirectory() as cache, progress() as report:
        for count, name in enumerate(("cold", "warm")):
            report(count, 2, "starts")
            figures = start_once({**engine, "model": config.model, "compilation_cache_dir": cache})
            phases = {f"{phase}_s": seconds for phase, seconds in figures["phases"].items()}
            row = {"start": name, **phases, "total_s": figures["total"], "first_token_s": figures["first_token"]}
            row |= figures["programs"]
            rows.append(row)
        report(2, 2, "starts")
    figures = dict.fromkeys(key for row in rows for key in row if key != "start")
    _print_table(("figure", "cold", "warm"), [
        {"figure": key.replace("_", " ")} | {row["start"]: row.get(key, "") for row in rows} for key in figures
    ])  # fmt: skip
    _write(output_json, "startup", config, rows)
    if plot:
        from jaxllm.bench.plot import plot_bars

        bars = {f"{row['start']}, {key[:-2]}": row[key] for row in rows for key in row if key.endswith("_s")}
        plot_bars(plot, f"{config.model}: start-up", "seconds", bars)


Source = Callable[[int, int, int], "list[Prompt]"]
"""(vocab_size, max_model_len, seed) -> prompts."""


def _source(
    config: EngineConfig,
    num_prompts: int,
    input_len: int | None,
    output_len: int | None,
    range_ratio: float,
    dataset_path: Path | None,
    workload: str | None = None,
) -> Source:
    """Where a benchmark's prompts come from: a fixed workload, a file, or random lengths."""
    from jaxllm.bench import workloads

    if workload and dataset_path:
        raise ConfigError("--workload and --dataset-path each say what to send: give one of them")
    if workload:
        (fixed,) = workloads.named([workload]).values()
        return lambda vocab_size, max_len, seed: workloads.fixed(fixed, vocab_size, seed)
    if dataset_path:
        from jaxllm import weights
        from jaxllm.server.text import Tokenizer

        encode = Tokenizer.load(weights.resolve_model_path(config.tokenizer or config.model)).encode
        if not dataset_path.is_file():
            raise ConfigError(f"--dataset-path {dataset_path}: no such file")
        return lambda vocab_size, max_len, seed: workloads.share_gpt(
            dataset_path, num_prompts, encode, seed=seed, num_output=output_len, max_len=max_len
        )
    num_output = output_len or DEFAULT_OUTPUT_LEN

    def random_lengths(vocab_size: int, max_len: int, seed: int) -> "list[Prompt]":
        fitting = int(max_len / (1 + range_ratio)) - num_output
        num_prompt = input_len or max(1, min(DEFAULT_INPUT_LEN, fitting))
        return workloads.random_lengths(
            num_prompts, num_prompt, num_output, vocab_size=vocab_size, seed=seed, range_ratio=range_ratio
        )

    return random_lengths


def _embedding_row(runs: "list[list[Prompt]]", seconds: list[float]) -> dict[str, Any]:
    """The figures of the repeat with the most tokens per second."""
    tokens = [sum(len(prompt.token_ids) for prompt in prompts) for prompts in runs]
    best = max(range(len(runs)), key=lambda i: tokens[i] / seconds[i])
    return {
        "workload": "random",
        "requests": len(runs[best]),
        "prompt_tokens": tokens[best],
        "seconds": seconds[best],
        "all_seconds": seconds,
        "requests_per_s": len(runs[best]) / seconds[best],
        "prompt_tokens_per_s": tokens[best] / seconds[best],
    }


def _device() -> str:
    """The device that this process runs its programs on."""
    import jax

    return jax.devices()[0].device_kind


def _check_plot(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix != ".png":
        raise ConfigError(f"--plot {path}: name a .png file")
    from jaxllm.bench.plot import require_matplotlib

    require_matplotlib()


def _print_table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    from rich.table import Column, Table

    names = (column.replace("_per_s", "/s").replace("_", " ") for column in columns)
    table = Table(*(Column(name, overflow="fold") for name in names))
    for row in rows:
        table.add_row(*(_shown(row.get(column, "")) for column in columns))
    print_table(table)


def _print_figures(row: dict[str, float]) -> None:
    _print_table(("figure", "value"), [{"figure": name, "value": value} for name, value in row.items()])


def _shown(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else str(value)


def _write(
    path: Path | None,
    benchmark: str,
    config: EngineConfig,
    rows: list[dict[str, Any]],
    load: dict[str, Any] | None = None,
) -> None:
    """The figures with what they were measured on, as one JSON document."""
    if path is None:
        return
    from importlib.metadata import version

    document = {
        "benchmark": benchmark,
        "measured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "jaxllm": __version__,
        "jax": version("jax"),
        "config": dataclasses.asdict(config),
        **(load or {}),
        "rows": rows,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
