"""Processes that help to compile: what they build serves as the parent's own, and a start survives all they may do."""

import logging
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxllm.config import EngineConfig
from jaxllm.errors import ConfigError
from jaxllm.runner import Runner, compiling, workers
from jaxllm.runner.compiling import Compiler, Job
from jaxllm.runner.plan import Prepared, compile_table, prepare
from jaxllm.runner.workers import deal, workers_for

from .conftest import Driver, prompt_of


@pytest.fixture
def config(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    """Of an engine of few programs, for which two workers start nevertheless."""
    monkeypatch.setattr(compiling, "WORTH_SHARING", 2)
    return EngineConfig(
        model=str(tiny), load_format="dummy", max_num_seqs=2, max_num_batched_tokens=16, max_model_len=32, block_size=8,
        kv_cache_memory_bytes=1 << 20, decode_steps=(1,), compile_workers=2, compilation_cache_dir=str(tmp_path),
    )  # fmt: skip


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    found: list[subprocess.Popen[bytes]] = []
    start = workers._start

    def note(order: workers.Order) -> subprocess.Popen[bytes]:
        found.append(start(order))
        return found[-1]

    monkeypatch.setattr(workers, "_start", note)
    return found


def _said(runner: Runner) -> list[int]:
    driver = Driver(runner)
    request = driver.request(prompt_of(9, 1), 0, max_total=32)
    driver.extend((request, request.num_known))
    driver.decode(request)
    return request.output


def _leaves_what_it_may(compiler: Compiler) -> Callable[[Job[Any]], Any]:
    """The compiler's way to lower, which waits for the first program of others'."""
    lower = compiler._lower

    def wait_and_lower(job: Job[Any]) -> Any:
        deadline = time.monotonic() + 240
        while job.shared and not compiler.loaded and time.monotonic() < deadline:
            time.sleep(0.05)
        return lower(job)

    return wait_and_lower


def test_what_workers_build_serves_as_ones_own(
    config: EngineConfig, started: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(config)
    compiler = prepared.table.compiler
    monkeypatch.setenv("MOSAIC_SET_BY_JAX", "since")  # which a worker must not take for its parent's
    monkeypatch.setattr(compiler, "_lower", _leaves_what_it_may(compiler))
    built = compile_table(prepared)
    keys = built.table.keys
    own = [key for key in keys if not built.table.job(key, built.plan.sizes).shared]
    assert {(key.kind, key.variant) for key in own} >= {("decode", "forward"), ("draw", "full")}
    assert {key.kind for key in own} == {"decode", "draw"}
    assert compiler.loaded + compiler.compiled == len(keys)
    assert compiler.compiled >= len(own)
    assert compiler.loaded > 0
    assert set(built.table.compiled) == set(keys)
    assert len(started) == 2
    compiler.keep(wait=True)
    monkeypatch.delenv("MOSAIC_SET_BY_JAX")
    helped = Runner.load(config)
    assert helped.table.compiler.compiled == 0  # nobody has kept what others do not find
    alone = Runner.load(config.replace(compile_workers=0, compilation_cache_dir=str(tmp_path / "alone")))
    assert (alone.table.compiler.loaded, alone.table.compiler.compiled) == (0, len(keys))
    assert len(started) == 2  # and no more
    assert _said(helped) == _said(alone)
    assert helped.memory_plan == alone.memory_plan


def _built_alone(prepared: Prepared) -> bool:
    built = compile_table(prepared)
    assert set(built.table.compiled) == set(built.table.keys)
    return built.table.compiler.compiled == built.table.size


def test_a_worker_that_would_build_other_programs_builds_none(
    config: EngineConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(config)
    assert prepared.workers is not None
    prepared.workers = replace(prepared.workers, order=replace(prepared.workers.order, identity="another"))
    assert _built_alone(prepared)
    assert "it would build other programs than its parent" in capfd.readouterr().err


def test_workers_that_do_not_start_are_not_missed(
    config: EngineConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        assert _built_alone(prepare(config))


@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_there_is_no_room_for_are_not_missed(
    number: int, config: EngineConfig, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    start = workers._start

    def refuse(order: workers.Order) -> subprocess.Popen[bytes]:
        if len(started) == number:
            raise BlockingIOError("no more processes")
        return start(order)

    monkeypatch.setattr(workers, "_start", refuse)
    built = compile_table(prepare(config))
    assert set(built.table.compiled) == set(built.table.keys)
    assert "cannot be started: no more processes" in caplog.text
    assert [process.returncode is not None for process in started] == [True] * number


def test_workers_end_with_the_start_that_wanted_them(
    config: EngineConfig, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler today")

    prepared = prepare(config)
    monkeypatch.setattr(prepared.table.compiler, "_compile", broken)
    with pytest.raises(RuntimeError, match="no compiler today"):
        compile_table(prepared)
    assert [process.returncode is not None for process in started] == [True, True]


def test_a_worker_ends_when_nobody_waits_for_it(config: EngineConfig, tmp_path: Path) -> None:
    prepared = prepare(config)
    assert prepared.workers is not None
    process = workers._start(replace(prepared.workers.order, keys=tuple(prepared.table.keys)))
    assert process.stdout is not None
    process.stdout.close()  # as where its parent was killed
    assert process.wait(timeout=120) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_shares_are_in_order_and_end_together() -> None:
    assert [[*share] for share in deal(11, 4)] == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7]]
    assert [[*share] for share in deal(11, 1)] == [[*range(11)]]
    assert [[*share] for share in deal(2, 4)] == [[0], [1]]
    assert deal(0, 4) == []


def test_how_many(config: EngineConfig) -> None:
    assert [workers_for(cores, 14 << 30) for cores in (1, 3, 4, 8, 16, 128)] == [0, 0, 1, 2, 4, 4]
    assert [workers_for(16, size << 30) for size in (0, 1, 2, 5, 14)] == [0, 0, 1, 2, 4]
    assert prepare(config.replace(compile_workers=None)).workers is None  # on a CPU
    with pytest.raises(ConfigError, match="must not be negative"):
        config.replace(compile_workers=-1)
