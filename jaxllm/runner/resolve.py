"""Turns the Nones of an EngineConfig into numbers for the model and the device at hand."""

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from jaxllm.config import OFFLINE_INTERVAL_MS, EngineConfig
from jaxllm.errors import ConfigError, RequestError
from jaxllm.models.encoder_decoder import EncoderDecoderConfig
from jaxllm.runner.workers import workers_for
from jaxllm.sampling_params import SamplingParams
from pallas_kernels import choose

log = logging.getLogger(__name__)

_MEMORY_SHARES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
"""The share of a GPU that JAX reserves, by its two names; to set both is an error of JAX's."""
CPU_MAX_MODEL_LEN = 8192
"""On a CPU a longer context is served only where it is asked for."""


_MAKERS_CHOICES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What is taken over from a generation_config.json, as vLLM does; its other fields are of transformers' own loop."""


class _Model(Protocol):
    """What is asked of a ModelConfig."""

    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def dtype(self) -> str: ...


def claim_memory(config: EngineConfig) -> None:
    """Lets JAX reserve gpu_memory_utilization of a GPU, unless the user said what. Must come before JAX first touches
    its devices."""
    if not any(name in os.environ for name in _MEMORY_SHARES):
        os.environ[_MEMORY_SHARES[0]] = str(config.gpu_memory_utilization)


def on_gpu() -> bool:
    return jax.devices()[0].platform == "gpu"


def device_budget(config: EngineConfig) -> int | None:
    """Bytes of the device that the engine may use, or None where the device does not say (a CPU)."""
    stats = jax.devices()[0].memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    # JAX's own limit is a share of the device already; a smaller utilization takes its part of that.
    return int(stats["bytes_limit"] * min(1.0, config.gpu_memory_utilization / _reserved_share()))


def _reserved_share() -> float:
    """Of the device's memory, what JAX reserves."""
    return float(next((os.environ[name] for name in _MEMORY_SHARES if name in os.environ), "0.75"))


def unclaimed_bytes() -> int:
    """Of the device, what JAX does not reserve; 0 where the device does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit", 0) * (1 / _reserved_share() - 1))


def resolve(config: EngineConfig, model: _Model) -> EngineConfig:
    """The configuration without Nones, but for the pool's size, which the memory plan decides, and what `for_weights`
    does."""
    generation_defaults(config, {})  # a wrong override is told before weights are read
    _check_kernels()
    gpu = on_gpu()
    max_model_len = _max_model_len(config, model, model.max_position_embeddings, gpu)
    max_num_seqs = config.max_num_seqs or min(256 if gpu else 16, config.max_num_batched_tokens or 256)
    # An encoder reads a source in one step.
    longest = max_model_len if isinstance(model, EncoderDecoderConfig) else 0
    max_num_batched_tokens = config.max_num_batched_tokens or max(8192 if gpu else 512, max_num_seqs, longest)
    if max_num_batched_tokens < max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens={max_num_batched_tokens} is below max_num_seqs={max_num_seqs}: a step could not "
            "give every running request its token; raise the first or lower the second"
        )
    return config.replace(
        dtype=_dtype(config, model, gpu),
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        compile_workers=_compile_workers(config, gpu),
        served_model_name=_names(config),
    )


AMPLE_BYTES = 32 << 30
"""Of a device, beside the weights: where twice the temporaries of a step of 8,192 tokens are no loss."""
BYTES_PER_SECOND = 3e12
"""That a decode step gets through: what an H200 reads, less what 64 rows take beside the weights."""


def for_weights(
    asked: EngineConfig, resolved: EngineConfig, weight_bytes: int, *, budget: int | None, sparse: bool
) -> EngineConfig:
    """The configuration with what the size of the weights decides, where nobody says.

    Steps of 16,384 tokens where there is room beside the weights and nobody waits for the end of one: they leave less
    of the device idle at each kernel's end, 1% of an 8B's long prompts.

    Several decode steps a program, unless the weights are so large that they would take longer than a stream may wait:
    then those programs would hardly ever run, and steps are long enough to hide what a launch costs. sparse: the model
    has experts, so that a step takes less than its weights say.

    budget: bytes of the device that the engine may use; None where the device does not say.
    """
    offline = resolved.stream_interval_ms >= OFFLINE_INTERVAL_MS
    tokens, steps = given(resolved.max_num_batched_tokens), asked.decode_steps
    if asked.max_num_batched_tokens is None and on_gpu() and offline and (budget or 0) - weight_bytes >= AMPLE_BYTES:
        tokens = max(tokens, 16384)
    if steps is None:
        too_long = not sparse and 4 * weight_bytes / BYTES_PER_SECOND > resolved.stream_interval_ms / 1000
        steps = (1, 4) if on_gpu() and not too_long and resolved.block_size >= 4 else (1,)
    return resolved.replace(max_num_batched_tokens=tokens, decode_steps=steps)


def _check_kernels() -> None:
    try:
        choose.check_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _compile_workers(config: EngineConfig, gpu: bool) -> int:
    if config.compile_workers is not None:
        return config.compile_workers
    return workers_for(len(os.sched_getaffinity(0)), unclaimed_bytes()) if gpu else 0


OUTPUT_BYTES = 256 << 20
"""What the numbers of a step's tokens may take, where each token has many (the logits of a masked language model)."""


def resolve_encoder(config: EngineConfig, model: _Model, longest: int, size: int | None) -> EngineConfig:
    """The same for a model that computes whole sequences without a cache.

    longest: tokens of a text where the user says nothing. size: numbers of each token, if it yields any for them alone.
    """
    _check_kernels()
    gpu = on_gpu()
    max_model_len = _max_model_len(config, model, longest, gpu)
    max_tokens = 8192 if gpu else 512
    if size is not None:
        max_tokens = min(max_tokens, OUTPUT_BYTES // (4 * size))
    tokens = config.max_num_batched_tokens or max(max_tokens, max_model_len)
    if tokens < max_model_len:
        raise ConfigError(
            f"max_num_batched_tokens={tokens} is below max_model_len={max_model_len}: this model computes whole "
            "sequences, never parts of one; raise the first or lower the second"
        )
    return config.replace(
        dtype=_dtype(config, model, gpu),
        max_model_len=max_model_len,
        max_num_seqs=min(tokens, config.max_num_seqs or (512 if gpu else 64)),
        max_num_batched_tokens=tokens,
        served_model_name=_names(config),
    )


def generation_defaults(config: EngineConfig, generation: Mapping[str, Any]) -> dict[str, Any]:
    """What requests leave unset: SamplingParams' names and values. generation: a generation_config.json's content.

    Raises ConfigError for what SamplingParams does not take.
    """
    makers = {} if config.generation_config == "vllm" else generation
    defaults = {name: makers[name] for name in _MAKERS_CHOICES if makers.get(name) is not None}
    override = dict(config.override_generation_config or {})
    if "max_new_tokens" in override:  # transformers' name
        override["max_tokens"] = override.pop("max_new_tokens")
    known = [field.name for field in dataclasses.fields(SamplingParams)]
    for name in override:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"override_generation_config: unknown parameter {name!r}; {hint}")
    defaults = {name: value for name, value in defaults.items() if name not in override}
    for source, values in (("generation_config.json", defaults), ("override_generation_config", defaults | override)):
        try:
            SamplingParams(**{"max_tokens": None} | values)
        except RequestError as error:
            raise ConfigError(f"{source}: {error}") from error
    return defaults | override


def _max_model_len(config: EngineConfig, model: _Model, longest: int, gpu: bool) -> int:
    made_for = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > made_for:
        raise ConfigError(
            f"max_model_len={config.max_model_len}: the model is made for {made_for} positions; "
            f"use at most {made_for}, or a checkpoint whose rope scaling extends it"
        )
    return config.max_model_len or (longest if gpu else min(longest, CPU_MAX_MODEL_LEN))


def _dtype(config: EngineConfig, model: _Model, gpu: bool) -> str:
    return config.dtype if config.dtype != "auto" else (model.dtype if gpu else "float32")


def _names(config: EngineConfig) -> tuple[str, ...]:
    return config.served_model_name or (os.path.basename(os.path.normpath(config.model)),)


def given[T](value: T | None) -> T:
    """A field that `resolve` has filled."""
    assert value is not None
    return value
