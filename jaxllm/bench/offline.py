"""Throughput and latency without a server: the engine in this process, text left out of it."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.bench.clients import BenchError
from jaxllm.bench.statistics import Record
from jaxllm.bench.workloads import Prompt
from jaxllm.core import FinishReason, SamplingParams

if TYPE_CHECKING:
    from jaxllm import LLM
    from jaxllm.engine import Engine


def greedy(num_output: int) -> SamplingParams:
    """Exactly num_output tokens, the most likely ones, as ids alone."""
    return SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True, detokenize=False)


def throughput(llm: "LLM", prompts: Sequence[Prompt]) -> float:
    """Seconds to run every prompt, all submitted at once. Raises BenchError unless every token came."""
    params = [greedy(prompt.num_output) for prompt in prompts]
    start = time.perf_counter()
    outputs = llm.generate([prompt.token_ids for prompt in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        if (count := len(output.outputs[0].token_ids)) != prompt.num_output:
            raise BenchError(f"prompt {index} yielded {count} tokens, {prompt.num_output} were asked for")
    return seconds


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
    for prompt, record in zip(prompts, records.values(), strict=True):
        if record.num_output != prompt.num_output:
            raise BenchError(f"a request yielded {record.num_output} tokens, {prompt.num_output} were asked for")
    return list(records.values()), seconds
