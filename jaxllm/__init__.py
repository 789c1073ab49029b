"""jaxllm serves language models from JAX on NVIDIA GPUs.

    from jaxllm import LLM, SamplingParams

    with LLM("path/to/checkpoint") as llm:
        print(llm.generate("Once upon a time", SamplingParams(temperature=0))[0].outputs[0].text)

The rooms, and what may be imported from where: server -> engine -> runner -> models -> layers -> pallas_kernels.

    llm.py      LLM: the offline API (generate, chat, stream, beam_search, encode_logits)
    pooling.py  its part for models that generate nothing (embed, classify, score, encode)
    prompts.py  what callers give as a prompt
    config.py   frozen configurations, validated once
    core.py     Request, StepPlan, StepOutput: plain data
    sampling_params.py, structured_outputs.py: what a request may ask for
    errors.py   every error says what is wrong, why, and what to do
    progress.py bars on a terminal, log lines elsewhere
    interrupts.py Ctrl-C between two steps of an engine
    loops.py    the event loop of processes that speak to many streams at once
    cli/        generate, serve, run-batch, bench, plan, convert, models
    bench/      workloads and what is measured of them
    server/     gRPC service, OpenAI HTTP front, batch files, metrics; text/: tokenizer, detokenizer, chat templates
    engine/     the loop, the scheduler, stop conditions, the client the servers hold
    cache/      page pool and prefix index: host bookkeeping only
    constraints/ structured outputs: grammars become masks of what may be drawn, on the host
    runner/     StepPlan -> packed arrays -> compiled program -> StepOutput; memory plan, device state by slot
    sampling/   device mathematics: logits processors, filters, keyed draws, log probabilities
    weights/    the loader, name tables, safetensors, Orbax
    models/     the registry and one file per block shape
    layers/     linear, norm, rope, attention, mlp, embed
    ../pallas_kernels/  one folder per operation: its reference and its kernels

Importing this package imports nothing heavy: LLM and the rest come when they are first named.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllm.llm import LLM, CompletionOutput, RequestOutput
    from jaxllm.sampling.processors import LogitsProcessor
    from jaxllm.sampling_params import SamplingParams
    from jaxllm.structured_outputs import StructuredOutputs

__all__ = [
    "LLM", "CompletionOutput", "LogitsProcessor", "RequestOutput", "SamplingParams", "StructuredOutputs", "__version__"
]  # fmt: skip

__version__ = "0.1.0"

_HOMES = {
    "LLM": "jaxllm.llm",
    "CompletionOutput": "jaxllm.llm",
    "LogitsProcessor": "jaxllm.sampling.processors",
    "RequestOutput": "jaxllm.llm",
    "SamplingParams": "jaxllm.sampling_params",
    "StructuredOutputs": "jaxllm.structured_outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxllm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
