"""What the None fields become, and how memory is divided."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxllm.config import OFFLINE_INTERVAL_MS, EngineConfig
from jaxllm.errors import ConfigError
from jaxllm.runner import Runner
from jaxllm.runner.plan import plan_memory, prepare
from jaxllm.runner.resolve import for_weights, resolve

from .conftest import VOCAB


@dataclass
class Model:
    max_position_embeddings: int = 131072
    dtype: str = "bfloat16"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxllm.runner.resolve.on_gpu", lambda: True)


def test_resolve_on_a_cpu() -> None:
    resolved = resolve(EngineConfig(model="/somewhere/llama/"), Model())
    assert (resolved.dtype, resolved.max_model_len, resolved.max_num_seqs) == ("float32", 8192, 16)
    assert resolved.max_num_batched_tokens == 512
    assert resolved.served_model_name == ("llama",)
    assert resolve(EngineConfig(), Model(512)).max_model_len == 512
    asked = resolve(EngineConfig(max_model_len=100_000, dtype="bfloat16", max_num_seqs=600), Model())
    assert (asked.max_model_len, asked.dtype, asked.max_num_batched_tokens) == (100_000, "bfloat16", 600)
    assert resolve(EngineConfig(max_num_batched_tokens=4), Model()).max_num_seqs == 4


def sized(weights: int, budget: int | None = 128 << 30, sparse: bool = False, **asked: Any) -> EngineConfig:
    """What the size of the weights makes of a configuration, in bytes."""
    config = EngineConfig(**asked)
    return for_weights(config, resolve(config, Model()), weights, budget=budget, sparse=sparse)


def test_steps_are_largest_where_nobody_waits_and_there_is_room(on_a_gpu: None) -> None:
    offline = {"stream_interval_ms": OFFLINE_INTERVAL_MS}
    assert sized(16 << 30, **offline).max_num_batched_tokens == 16384
    assert sized(100 << 30, **offline).max_num_batched_tokens == 8192
    assert sized(1 << 30, budget=None, **offline).max_num_batched_tokens == 8192
    assert sized(16 << 30).max_num_batched_tokens == 8192
    assert sized(16 << 30, max_num_batched_tokens=2048, **offline).max_num_batched_tokens == 2048


def test_a_program_decodes_several_steps_where_a_stream_has_time_for_them(on_a_gpu: None) -> None:
    assert sized(2 << 30).decode_steps == (1, 4)
    assert sized(16 << 30).decode_steps == (1,)
    assert sized(16 << 30, sparse=True).decode_steps == (1, 4)
    assert sized(16 << 30, stream_interval_ms=OFFLINE_INTERVAL_MS).decode_steps == (1, 4)
    assert sized(16 << 30, decode_steps=(1, 8)).decode_steps == (1, 8)
    assert sized(2 << 30, block_size=2).decode_steps == (1,)


def test_a_cpu_takes_one_step_at_a_time() -> None:
    config = sized(1 << 20, budget=None, stream_interval_ms=OFFLINE_INTERVAL_MS)
    assert (config.max_num_batched_tokens, config.decode_steps) == (512, (1,))
    assert sized(1 << 20, budget=None, decode_steps=(1, 4)).decode_steps == (1, 4)


def test_the_plan_makes_steps_larger_where_it_finds_room(
    config: EngineConfig, on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxllm.runner.plan.device_budget", lambda config: 100 << 30)
    offline = config.replace(max_num_batched_tokens=None, stream_interval_ms=OFFLINE_INTERVAL_MS)
    assert prepare(offline).config.max_num_batched_tokens == 16384
    assert prepare(offline.replace(max_num_batched_tokens=512)).config.max_num_batched_tokens == 512


def test_resolve_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="max_model_len=1000: the model is made for 512 positions"):
        resolve(EngineConfig(max_model_len=1000), Model(512))
    with pytest.raises(ConfigError, match="max_num_batched_tokens=8 is below max_num_seqs=16"):
        resolve(EngineConfig(max_num_batched_tokens=8, max_num_seqs=16), Model())
    monkeypatch.setenv("JAXLLM_KERNELS", "mosaik")
    with pytest.raises(ConfigError, match="JAXLLM_KERNELS='mosaik' is no backend; choose one of mosaic, triton"):
        resolve(EngineConfig(), Model())


def test_the_pool_is_no_larger_than_can_be_used(config: EngineConfig) -> None:
    assert prepare(config.replace(num_gpu_blocks_override=None)).plan.num_pages == 4 * 40 + 1


def test_pool_from_bytes_and_from_pages(config: EngineConfig) -> None:
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head dim, bytes
    plan = prepare(config.replace(num_gpu_blocks_override=None, kv_cache_memory_bytes=50 * 8 * token + 1)).plan
    assert (plan.num_pages, plan.kv_bytes_per_token, plan.kv_bytes) == (50, token, 50 * 8 * token)
    assert (plan.cache_tokens, plan.largest_batch) == (49 * 8, 1)
    assert prepare(config.replace(num_gpu_blocks_override=77, kv_cache_memory_bytes=1)).plan.num_pages == 77


def test_a_pool_too_small_for_one_request(config: EngineConfig) -> None:
    with pytest.raises(ConfigError, match=r"holds 80 tokens \(11 pages of 8.*max_model_len=320.*Lower max_model_len"):
        prepare(config.replace(num_gpu_blocks_override=11))
    with pytest.raises(ConfigError, match=r"holds 0 tokens.*kv_cache_memory_bytes"):
        prepare(config.replace(num_gpu_blocks_override=None, kv_cache_memory_bytes=100, max_model_len=None))


def test_a_context_nobody_asked_for_is_lowered_to_what_fits(
    config: EngineConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepared = prepare(config.replace(num_gpu_blocks_override=11, max_model_len=None))
    assert prepared.plan.max_model_len == prepared.config.max_model_len == 80
    assert prepared.table.programs.geometry.tables.max_pages == 10
    assert "max_model_len lowered from 512 to 80" in caplog.text


def test_plan_needs_no_weights(tiny: Path, config: EngineConfig) -> None:
    plan = plan_memory(config.replace(load_format="auto", max_num_batched_tokens=16, decode_steps=(1,)))
    assert plan.parameters == 2 * (32 * 64 + 32 * 32 + 3 * 32 * 48 + 2 * 32) + 2 * 61 * 32 + 32
    assert plan.weight_bytes == 4 * plan.parameters
    assert plan.program_bytes > 61 * 4
    assert plan.budget_bytes is None
    assert plan.max_num_seqs == 4
    assert plan.programs == ()


def test_the_runner_reports_what_its_programs_take(runner: Runner) -> None:
    plan = runner.memory_plan
    assert len(plan.programs) == runner.table.size
    costs = {cost.name: cost for cost in plan.programs}
    scored = costs["extend of 512 tokens, scored"]
    assert scored.flops > costs["extend of 64 tokens"].flops > 0
    hungriest, waiting = max(cost.temp_bytes for cost in plan.programs), runner.table.mask_bytes
    assert plan.program_bytes == hungriest + waiting
    assert plan.state_bytes >= 4 * 4 * VOCAB, "logits of every slot, until they are drawn from"
    assert plan.state_bytes == sum(x.nbytes for x in jax.tree.leaves(runner._state))
