"""Starts: what the second one does not do again, what an entry's name depends on, and how memory is reckoned."""

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm.config import EngineConfig
from jaxllm.errors import CheckpointError, ConfigError
from jaxllm.runner import Runner, estimate, executables, plan, resolve, start
from jaxllm.runner.compiling import Compiler, Job, ProgramCost, StoppedError
from jaxllm.runner.encode import EncodeRunner
from jaxllm.runner.plan import compile_table, prepare, with_costs
from jaxllm.runner.resolve import device_budget

from .conftest import Driver, prompt_of

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@pytest.fixture(scope="module")
def small(tiny: Path) -> EngineConfig:
    """Few programs, all of this package's own code."""
    return EngineConfig(
        model=str(tiny), load_format="dummy", max_num_seqs=2, max_num_batched_tokens=16, max_model_len=32, block_size=8,
        num_gpu_blocks_override=17, decode_steps=(1,),
    )  # fmt: skip


@pytest.fixture
def lowered() -> Any:
    """Names of the functions that were lowered since the test began."""
    names: list[str] = []

    def note(event: str, seconds: float, **details: Any) -> None:
        if event == LOWERED:
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def test_a_second_start_lowers_nothing_and_says_the_same(
    small: EngineConfig, tmp_path: Path, lowered: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = small.replace(compilation_cache_dir=str(tmp_path))
    first = Runner.load(config)
    count = first.table.size
    assert (first.table.compiler.loaded, first.table.compiler.compiled) == (0, count)
    assert first.table.compiler.lower_seconds > 0 < first.table.compiler.compile_seconds
    first.keep(wait=True)
    entries = list((tmp_path / "executables").iterdir())
    assert len(entries) == count
    assert len([name for name in lowered if name.startswith(("jit(extend", "jit(decode"))]) == len(
        [key for key in first.table.keys if key.kind in ("extend", "decode")]
    )

    lowered.clear()
    with caplog.at_level(logging.INFO):
        second = Runner.load(config)
    assert (second.table.compiler.loaded, second.table.compiler.compiled) == (count, 0)
    assert not [
        name for name in lowered if name.startswith(("jit(extend", "jit(decode", "jit(copy", "jit(seed", "jit(draw"))
    ], lowered
    assert f"{count} programs loaded, 0 compiled" in caplog.text
    assert {"planning", "weights", "programs", "warm-up", "total"} <= second.start_seconds.keys()
    assert second.memory_plan == first.memory_plan
    assert _said(second) == _said(first)


def _said(runner: Runner) -> list[list[int]]:
    runner_driver = Driver(runner)
    requests = [runner_driver.request(prompt_of(9, seed), seed, max_total=32) for seed in range(2)]
    runner_driver.extend(*((request, request.num_known) for request in requests[:1]))
    runner_driver.decode(requests[0])
    return [request.output for request in requests]


def _names(config: EngineConfig, directory: Path, **options: Any) -> set[str]:
    prepared = prepare(config.replace(compilation_cache_dir=str(directory)), **options)
    store, table = prepared.table.compiler.kept, prepared.table
    assert isinstance(store, executables.Store)
    return {
        store._path(table.job(key, prepared.plan.sizes)).name
        for key in table.keys
        if key.kind != "draw"  # which depends on no pool
    }


def test_entries_are_named_by_all_that_decides_them(
    small: EngineConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = _names(small, tmp_path)
    assert names == _names(small, tmp_path)
    assert names == _names(small.replace(seed=9, served_model_name="other", max_queued=7), tmp_path)
    changed = [small.replace(**change) for change in (
        {"num_gpu_blocks_override": 18}, {"max_model_len": 24}, {"dtype": "bfloat16"}, {"logprobs_mode": "raw_logits"},
    )]  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tiny / "config.json").read_text().replace("10000.0", "20000.0"))
    changed.append(small.replace(model=str(other)))
    seen = [names, *(_names(config, tmp_path) for config in changed)]
    for name, value in (("_sources", "edited"), ("_versions", {"jax": "99"}), ("_machine", "another driver")):
        with monkeypatch.context() as patch:
            patch.setattr(executables, name, lambda *_, value=value: value)
            seen.append(_names(small, tmp_path))
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=false")
    seen.append(_names(small, tmp_path))
    for i, one in enumerate(seen):
        for other_names in seen[:i]:
            assert one.isdisjoint(other_names)


def test_an_edited_source_is_another_source(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    files = list(tmp_path.iterdir())
    before = executables._digest(files)
    assert before == executables._digest(reversed(files))
    (tmp_path / "b.py").write_text("x = 2\n")
    assert before != executables._digest(files)


def _job(shape: int = 4, key: str = "double") -> Job[str]:
    return Job(key, lambda x: x + x, (jax.ShapeDtypeStruct((shape,), np.float32),), jax.tree.structure(0))


def _store(directory: Path, **identity: str) -> executables.Store:
    store = executables.Store.open(directory, identity)
    assert store is not None
    return store


def _keep(store: executables.Store, jobs: list[Job[str]]) -> None:
    compiler = Compiler(store)
    compiler.build(jobs)
    compiler.keep(wait=True)


def _double(compiler: Compiler) -> float:
    (built,) = compiler.build([_job()]).values()
    compiler.keep(wait=True)
    return float(built.run(np.full(4, 1.5, np.float32))[0])


def test_damaged_entries_are_dropped_and_compiled_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _double(Compiler(_store(tmp_path))) == 3
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    for damage in (whole[:-9], whole[:100], b"", whole.replace(b"executable 1", b"executable 0"), whole[:-1] + b"\0"):
        entry.write_bytes(damage)
        compiler = Compiler(_store(tmp_path))
        caplog.clear()
        assert _double(compiler) == 3
        assert (compiler.loaded, compiler.compiled) == (0, 1)
        assert "dropped the executable of double" in caplog.text
    compiler = Compiler(_store(tmp_path))
    assert _double(compiler) == 3
    assert (compiler.loaded, compiler.compiled) == (1, 0)


def test_a_directory_that_others_may_write_to_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "shared"
    _store(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    assert executables.Store.open(directory, {}) is None
    assert "may be written to by others" in caplog.text


def test_the_least_used_entries_go_first(tmp_path: Path) -> None:
    store = _store(tmp_path)
    jobs = [_job(key=f"program {i}") for i in range(3)]
    _keep(store, jobs)
    paths = [store._path(job) for job in jobs]
    for age, path in enumerate(paths):
        os.utime(path, (1000 - age, 1000 - age))
    assert store.load(jobs[2]) is not None  # used now, though written first
    store.trim(limit=sum(path.stat().st_size for path in paths) - 1)
    assert [path.exists() for path in paths] == [True, False, True]
    assert not list(tmp_path.glob(".new-*"))


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    store = _store(tmp_path)
    old, young = tmp_path / ".new-old", tmp_path / ".new-young"
    old.touch()
    young.touch()
    os.utime(old, (1000, 1000))
    store.trim()
    assert (old.exists(), young.exists()) == (False, True)


def test_an_entry_that_goes_as_it_is_read_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path)
    _keep(store, [_job()])
    decode = executables._decode

    def decode_as_another_trims(*arguments: Any) -> Any:
        store._path(_job()).unlink()
        return decode(*arguments)

    monkeypatch.setattr(executables, "_decode", decode_as_another_trims)
    assert store.load(_job()) is not None


def test_what_cannot_be_serialised_is_left_to_jax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(compiled: Any) -> None:
        raise ValueError("Compilation does not support serialization")

    monkeypatch.setattr(executables.serialize_executable, "serialize", refuse)
    assert _double(Compiler(_store(tmp_path))) == 3
    assert "double is not kept as an executable: ValueError" in caplog.text
    assert executables.Store.open(tmp_path, {}) is None
    assert executables.Store.open(tmp_path, {"another": "engine"}) is not None
    assert jax.config.jax_enable_compilation_cache


def test_what_fails_in_its_first_run_is_not_kept(tmp_path: Path) -> None:
    _keep(_store(tmp_path), [_job()])
    compiler = Compiler(_store(tmp_path))
    compiler.build([_job()])
    with pytest.raises(ZeroDivisionError), compiler.trying():
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_decoder_that_embeds_lowers_nothing_twice(small: EngineConfig, tmp_path: Path) -> None:
    config = small.replace(task="embed", max_num_batched_tokens=32, compilation_cache_dir=str(tmp_path))
    first = EncodeRunner.load(config)
    first.keep(wait=True)
    second = EncodeRunner.load(config)
    assert first.table.compiler.compiled == second.table.compiler.loaded > 0
    assert (first.table.compiler.loaded, second.table.compiler.compiled) == (0, 0)


def test_users_own_code_is_not_kept_as_executables(config: EngineConfig, tmp_path: Path) -> None:
    """`config` has a logits processor of the tests."""
    assert prepare(config.replace(compilation_cache_dir=str(tmp_path))).table.compiler.kept is None
    assert prepare(config.replace(compilation_cache_dir="", logits_processors=())).table.compiler.kept is None


def test_the_directory_may_come_from_the_environment(
    small: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXLLM_COMPILATION_CACHE_DIR", str(tmp_path))
    store = prepare(small).table.compiler.kept
    assert isinstance(store, executables.Store)
    assert store.directory == tmp_path / "executables"
    monkeypatch.setenv("JAXLLM_COMPILATION_CACHE_DIR", "")
    assert prepare(small).table.compiler.kept is None


def test_an_error_of_either_thread_ends_the_other() -> None:
    compiler = Compiler()

    def fail(report: Any) -> None:
        raise CheckpointError("a tensor is missing")

    def build() -> None:
        while True:
            compiler.build([_job()])

    with pytest.raises(CheckpointError, match="a tensor is missing"):
        start.build_and_load(build, fail, compiler, None, start.Stages())

    def load(report: Any) -> None:
        while True:
            report(0, 1, "loading weights")

    def refuse() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start.build_and_load(refuse, load, Compiler(), None, start.Stages())


def test_what_cannot_be_kept_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = Compiler(_store(tmp_path / "cache"))
    compiler.build([_job(), _job(key="another")])

    def refuse(*_: Any) -> None:
        raise PermissionError("the directory is not ours any more")

    monkeypatch.setattr(executables.Store, "trim", refuse)
    (tmp_path / "cache").rmdir()
    assert compiler.keep_next()
    assert not compiler.keep_next()
    assert "is not kept as an executable: FileNotFoundError" in caplog.text
    assert "are not removed: the directory is not ours any more" in caplog.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("early", [True, False])
def test_a_start_does_not_wait_for_what_is_kept_of_it(
    early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(_store(tmp_path), keeps_early=early)
    begun, may_end = threading.Event(), threading.Event()
    save = executables.Store.save

    def save_slowly(self: executables.Store, job: Job[str], built: Any) -> None:
        begun.set()
        may_end.wait()
        save(self, job, built)

    monkeypatch.setattr(executables.Store, "save", save_slowly)
    compiler.build([_job(), _job(key="another")])
    assert begun.wait(10 if early else 0.1) == early
    compiler.keep()
    begun.wait()
    assert not list(tmp_path.iterdir())
    may_end.set()
    compiler.keep(wait=True)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("where", ["check", "lower", "compile"])
def test_a_build_that_fails_ends(where: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though most of it is not lowered yet, and what is compiled is to be written behind that."""
    compiler = Compiler(_store(tmp_path) if kept else None, lowering=1, compiling=2)
    jobs = [replace(_job(key=f"program {i}"), kernels=("shared",)) for i in range(12)]

    def refuse(*_: Any) -> None:
        raise ZeroDivisionError

    lower = compiler._lower

    def lower_slowly(job: Job[Any]) -> Any:
        time.sleep(0.1)
        return refuse() if where == "lower" and job is jobs[1] else lower(job)

    monkeypatch.setattr(compiler, "_lower", lower_slowly)
    if where == "compile":
        monkeypatch.setattr(compiler, "_compile", refuse)
    with pytest.raises(ZeroDivisionError):
        compiler.build(jobs, check=refuse if where == "check" else None)
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.timeout(60)
def test_whoever_shares_kernels_waits_for_the_first_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(lowering=3)
    events: list[tuple[str, str]] = []
    between = threading.Event()
    lower = compiler._lower

    def note(job: Job[Any]) -> Any:
        events.append((job.key, "begins"))
        if job.key == "first of x":
            between.wait()  # until one that shares nothing has been lowered
        lowered = lower(job)
        events.append((job.key, "ends"))
        if not job.kernels:
            between.set()
        return lowered

    monkeypatch.setattr(compiler, "_lower", note)
    jobs = [
        replace(_job(key=key), kernels=kernels)
        for key, kernels in {
            "none": (), "xy": ("x", "y"), "first of x": ("x",), "x": ("x",), "yx": ("y", "x"), "first of y": ("y",),
        }.items()
    ]  # fmt: skip
    assert set(compiler.build(jobs)) == {job.key for job in jobs}
    at = {event: place for place, event in enumerate(events)}
    assert at["none", "ends"] < at["first of x", "ends"]
    for job in jobs:
        for name in job.kernels:
            if job.key != f"first of {name}":
                assert at[f"first of {name}", "ends"] < at[job.key, "begins"], job.key


def test_a_stopped_compiler_builds_nothing() -> None:
    compiler = Compiler()
    compiler.stop()
    with pytest.raises(StoppedError):
        compiler.build([_job()])


@pytest.mark.parametrize("name", ["llama", "jamba-dense-tied-biases", "gemma2-caps-and-windows"])
def test_what_programs_take_is_reckoned_from_above(tiny: Path, name: str) -> None:
    path = tiny if name == "llama" else Path(__file__).parents[1] / "models" / "reference" / name
    config = EngineConfig(
        model=str(path), load_format="dummy", max_num_seqs=3, max_num_batched_tokens=256, max_model_len=32,
        block_size=8, compilation_cache_dir="",
    )  # fmt: skip
    table, sizes = (prepared := prepare(config)).table, prepared.plan.sizes
    (key,) = [key for key in table.keys if key.variant == "scored"]
    job = table.job(key, sizes)
    reckoned = estimate.program_bytes(job.function, job.arguments, job.donated)
    taken = compiled_bytes(job)
    assert taken <= reckoned
    assert reckoned - estimate.SLACK <= 4 * taken


def compiled_bytes(job: Job[Any]) -> int:
    (built,) = Compiler().build([job]).values()
    return built.cost.temp_bytes


def test_buffers_are_reckoned_as_they_live() -> None:
    big = jax.ShapeDtypeStruct((1 << 20,), np.float32)

    def bytes_of(function: Any, *arguments: Any, donated: tuple[int, ...] = ()) -> float:
        return (estimate.program_bytes(function, arguments, donated) - estimate.SLACK) / estimate.SHARE / (4 << 20)

    assert bytes_of(lambda x: (x * 2 + 1).sum(), big) < 0.01  # fused into the sum
    assert bytes_of(lambda x: jax.numpy.sort(x), big) == 1
    assert bytes_of(lambda x: jax.numpy.sort(jax.numpy.sort(x)), big) == 2
    assert 1 <= bytes_of(lambda x: x.at[3].set(np.float32(1)), big) < 1.01
    assert bytes_of(lambda x: x.at[3].set(np.float32(1)), big, donated=(0,)) < 0.01  # in place


def test_a_program_that_takes_more_than_reckoned_makes_the_cache_smaller(
    small: EngineConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    budget = 4 << 20
    monkeypatch.setattr(plan, "device_budget", lambda config: budget)
    monkeypatch.setattr(estimate, "program_bytes", lambda *_: 0)
    config = small.replace(num_gpu_blocks_override=None, compilation_cache_dir="", enable_prefix_caching=True)
    prepared = prepare(config)
    assert prepared.plan.program_bytes == prepared.table.mask_bytes
    with caplog.at_level(logging.WARNING):
        built = compile_table(prepared)
    whole = with_costs(built.plan, built.table)
    assert "planning a smaller cache" in caplog.text
    assert built.plan.num_pages < prepared.plan.num_pages
    taken = whole.weight_bytes + whole.state_bytes + whole.kv_bytes + whole.program_bytes
    assert taken <= plan.available(budget)
    assert set(built.table.compiled) == set(built.table.keys)
    assert all(isinstance(cost, ProgramCost) for cost in built.table.costs.values())
    assert device_budget(config) is None  # of the CPU itself


@pytest.mark.parametrize("fixed", [{"num_gpu_blocks_override": 17}, {"kv_cache_memory_bytes": 1 << 20}])
def test_a_cache_of_a_fixed_size_that_leaves_programs_no_room_is_refused(
    small: EngineConfig, fixed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small.replace(**({"num_gpu_blocks_override": None, "compilation_cache_dir": ""} | fixed))
    taken = with_costs((whole := prepare(config)).plan, whole.table)
    budget = taken.weight_bytes + taken.state_bytes + taken.kv_bytes
    monkeypatch.setattr(plan, "device_budget", lambda config: budget)
    with pytest.raises(ConfigError, match="as was asked for: lower kv_cache_memory_bytes, num_gpu_blocks_override"):
        compile_table(prepare(config))


def test_a_later_start_knows_what_its_programs_take(
    small: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small.replace(compilation_cache_dir=str(tmp_path))
    traced: list[str] = []
    monkeypatch.setattr(estimate, "program_bytes", lambda function, *_: (traced.append(function.__name__), 1 << 20)[1])
    plan.plan_memory(config)
    assert traced
    traced.clear()
    assert plan.plan_memory(config).program_bytes > 1 << 20
    assert not traced
    plan.plan_memory(config.replace(max_num_seqs=1))
    assert traced, "another engine's programs are others"

    for damaged in ("", "many", "-1"):
        for file in (tmp_path / "executables").glob("*.bytes"):
            file.write_text(damaged)
        traced.clear()
        plan.plan_memory(config)
        assert traced


def test_what_a_program_took_beyond_the_reckoning_is_known_to_later_starts(
    small: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan, "device_budget", lambda config: 4 << 20)
    monkeypatch.setattr(estimate, "program_bytes", lambda *_: 0)
    config = small.replace(num_gpu_blocks_override=None, compilation_cache_dir=str(tmp_path))
    built = compile_table(prepare(config))
    built.table.compiler.keep(wait=True)
    assert "planning a smaller cache" in caplog.text
    entries = list((tmp_path / "executables").glob("*.executable"))
    assert len(entries) == built.table.size, "nothing is kept of the plan that was given up"
    caplog.clear()
    second = compile_table(prepare(config))
    assert "planning a smaller cache" not in caplog.text
    assert second.plan == built.plan
    assert second.table.compiler.compiled == 0


def test_what_of_a_device_is_reserved_and_what_is_not(small: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 72 << 30})
    monkeypatch.setattr(resolve.jax, "devices", lambda: [device])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # of 80 GiB
    assert device_budget(small) == 72 << 30
    assert device_budget(small.replace(gpu_memory_utilization=0.45)) == 36 << 30
    assert resolve.unclaimed_bytes() == pytest.approx(8 << 30)
    device.memory_stats = lambda: None
    assert resolve.unclaimed_bytes() == 0
