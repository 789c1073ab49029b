"""Throughput and latency without a server: the engine in this process, text left out of it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.bench.clients import BenchError
from jaxllm.bench.statistics import Record
from jaxllm.bench.workloads import Prompt
from jaxllm.core import FinishReason
from jaxllm.sampling_params import SamplingParams
from jaxllm.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from jaxllm import LLM
    from jaxllm.engine import Engine
    from jaxllm.engine.engine import StepTimes


def greedy(num_output: int, form: StructuredOutputs | None = None) -> SamplingParams:
    """Exactly num_output tokens, the most likely ones, as ids alone. form: of which no answer is at its end before."""
    return SamplingParams(
        temperature=0, max_tokens=num_output, ignore_eos=True, detokenize=False, structured_outputs=form
    )


def throughput(
    llm: "LLM", prompts: Sequence[Prompt], form: StructuredOutputs | None = None
) -> tuple[float, "StepTimes"]:
    """Seconds to run every prompt, all submitted at once, and where the steps' time went. Raises BenchError unless
    every token came."""
    params = [greedy(prompt.num_output, form) for prompt in prompts]
    before, start = replace(llm.engine.times), time.perf_counter()
    outputs = llm.generate([prompt.token_ids for prompt in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        if (count := len(output.outputs[0].token_ids)) != prompt.num_output:
            raise BenchError(f"prompt {index} yielded {count} tokens, {prompt.num_output} were asked for")
    return seconds, llm.engine.times.since(before)


def throughput_row(
    name: str, runs: Sequence[Sequence[Prompt]], measured: Sequence[tuple[float, "StepTimes"]]
) -> dict[str, Any]:
    """The figures of the repeat with the most tokens per second. Tokens are counted by the benchmark itself."""
    best = max(range(len(runs)), key=lambda i: sum(p.num_output for p in runs[i]) / measured[i][0])
    num_output = sum(prompt.num_output for prompt in runs[best])
    num_prompt = sum(len(prompt.token_ids) for prompt in runs[best])
    seconds, times = measured[best]
    return {
        "workload": name,
        "requests": len(runs[best]),
        "prompt_tokens": num_prompt,
        "output_tokens": num_output,
        "seconds": seconds,
        "all_seconds": [one for one, _ in measured],
        "requests_per_s": len(runs[best]) / seconds,
        "output_tokens_per_s": num_output / seconds,
        "total_tokens_per_s": (num_prompt + num_output) / seconds,
        "steps": times.steps,
        "host_ms_per_step": times.host / times.steps * 1000,
        "device_ms_per_step": times.device / times.steps * 1000,
    }


def embed(llm: "LLM", prompts: Sequence[Prompt]) -> float:
    """Seconds to embed every prompt, all submitted at once. Raises BenchError for a vector that is not finite."""
    start = time.perf_counter()
    outputs = llm.embed([prompt.token_ids for prompt in prompts], use_tqdm=False)
    seconds = time.perf_counter() - start
    for index, output in enumerate(outputs):
        if not np.isfinite(output.outputs.embedding).all():
            raise BenchError(f"prompt {index} yielded a vector that is not finite")
    return seconds


def run_batch(engine: "Engine", prompts: Sequence[Prompt]) -> tuple[list[Record], float]:
    """Submit every prompt to an idle engine and step it until all have ended: records and seconds."""
    start = time.monotonic()
    records: dict[str, Record] = {}
    for prompt in prompts:
        request = engine.make_request(prompt.token_ids, greedy(prompt.num_output))
        records[request.request_id] = Record(num_prompt=len(prompt.token_ids), sent=start)
        engine.add(request)
    while engine.has_work:
        deltas = engine.step()
        now = time.monotonic()
        for delta in deltas:
            record = records[delta.request_id]
            if delta.finish is FinishReason.ERROR:
                raise BenchError(f"a request failed: {delta.error}")
            if delta.token_ids:
                record.arrivals.append(now)
                record.num_output += len(delta.token_ids)
    seconds = time.monotonic() - start
    check_lengths([record.num_output for record in records.values()], prompts)
    return list(records.values()), seconds


def check_lengths(yielded: Iterable[int], prompts: Sequence[Prompt]) -> None:
    """Raises BenchError unless every prompt yielded what it was asked for."""
    for count, prompt in zip(yielded, prompts, strict=True):
        if count != prompt.num_output:
            raise BenchError(f"a request yielded {count} tokens, {prompt.num_output} were asked for")
