"""Loads on a served engine: streams side by side, and what a long prompt that comes among them does to them."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.bench.clients import BenchError, Target
from jaxllm.bench.load import run_load
from jaxllm.bench.peers import VLLM_SERVING
from jaxllm.bench.statistics import Record, samples
from jaxllm.bench.workloads import random_lengths

LONG_AFTER = 1.5  # seconds from the first request until the long prompt is sent
LONG_OUTPUT = 8


@dataclass(frozen=True, slots=True)
class Load:
    """num_requests requests, `streams` of them at any time. long: tokens of a prompt that comes while they run."""

    streams: int
    num_requests: int
    num_prompt: int
    num_output: int
    long: int = 0


LOADS = {
    "one stream": Load(1, 4, 128, 256),
    "32 streams": Load(32, 32, 128, 512),
    "32 streams and a long prompt": Load(32, 32, 128, 512, long=32000),
    "64 streams": Load(64, 128, 128, 256),
    "256 streams": Load(256, 512, 1024, 256),
}


def with_tokenizer(shape: Path, directory: Path) -> Path:
    """A copy of a bundled shape in `directory`, with a tokenizer in which every id is a word of its own, so that an
    HTTP front has text to send with every token, as with a real one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = json.loads((shape / "config.json").read_text(encoding="utf-8"))
    words = Tokenizer(models.WordLevel({f"\u0120w{i}": i for i in range(config["vocab_size"])}, unk_token="\u0120w0"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    words.save(str(directory / "tokenizer.json"), pretty=False)
    shutil.copy(shape / "config.json", directory)
    return directory


def run(name: str, load: Load, target: Target, vocab_size: int, seed: int, long_after: float = LONG_AFTER) -> dict:
    """The figures of a load, vLLM's beside where it is one of LOADS. Raises BenchError unless every token came."""
    prompts = random_lengths(load.num_requests, load.num_prompt, load.num_output, vocab_size=vocab_size, seed=seed)
    offsets = [0.0] * len(prompts)
    if load.long:
        # First in line, so that it is nobody's turn that it takes.
        (long,) = random_lengths(1, load.long, LONG_OUTPUT, vocab_size=vocab_size, seed=seed + 1)
        prompts, offsets = [long, *prompts], [long_after, *offsets]
    records, _ = run_load(target, prompts, offsets=offsets, max_concurrency=load.streams + bool(load.long))
    for record in records:
        if record.error is not None:
            raise BenchError(f"{name}: a request failed: {record.error}")
    row = {"load": name, "protocol": target.protocol, **dataclasses.asdict(load)}
    if load.long:
        row["long_ttft_ms"] = records[0].ttft * 1000
        records = records[1:]
    row |= figures(records)
    if load == LOADS.get(name):
        row |= {f"vllm_{figure}": value for figure, value in VLLM_SERVING[name].items()}
    return row


def figures(records: list[Record]) -> dict[str, Any]:
    """Over requests that are complete; gaps are those between arrivals at the client."""
    values = samples(records)
    seconds = max(record.arrivals[-1] for record in records) - min(record.sent for record in records)

    def percentile(name: str, p: float) -> float:
        return float(np.percentile(values[name] or [0.0], p)) * 1000

    return {
        "seconds": seconds,
        "output_tokens": (tokens := sum(record.num_output for record in records)),
        "output_tokens_per_s": tokens / seconds,
        "ttft_p50_ms": percentile("ttft", 50),
        "ttft_p99_ms": percentile("ttft", 99),
        "tpot_p50_ms": percentile("tpot", 50),
        "gap_p50_ms": percentile("itl", 50),
        "gap_p99_ms": percentile("itl", 99),
        "gap_max_ms": percentile("itl", 100),
    }
