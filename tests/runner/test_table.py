"""The table and its programs: which sizes there are, and that none copies a pool."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import EngineConfig
from jaxllm.runner import Runner
from jaxllm.runner.drawing import VARIANTS
from jaxllm.runner.plan import prepare
from jaxllm.runner.programs import ProgramKey
from jaxllm.runner.table import ProgramTable, closed_table, row_buckets, token_buckets

from .conftest import VOCAB


def test_row_buckets() -> None:
    fine = row_buckets(256, gpu=True)
    assert fine == [2, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert row_buckets(3, gpu=True) == [2, 3]
    assert row_buckets(1, gpu=True) == [1]
    assert row_buckets(100, gpu=True)[-2:] == [96, 100]
    assert row_buckets(16, gpu=False) == [1, 16]
    assert row_buckets(1, gpu=False) == [1]


def test_token_buckets() -> None:
    powers, between = [16 << i for i in range(10)], [384, 768, 1536, 3072, 6144]
    assert token_buckets(8192, gpu=True) == sorted(powers + between)
    assert token_buckets(16384, gpu=True) == [*sorted(powers + between), 16384]
    assert token_buckets(1, gpu=True) == [16]
    assert token_buckets(1000, gpu=True)[-3:] == [512, 768, 1024]
    assert token_buckets(512, gpu=False) == [64, 512]
    assert token_buckets(300, gpu=False) == [64, 512]  # a multiple of the block that prompts are scored in


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(("rows", "tokens", "steps"), [(1, 1, (1,)), (16, 512, (1, 4)), (200, 3000, (1, 8))])
def test_every_step_the_scheduler_may_plan_has_its_program(
    rows: int, tokens: int, steps: tuple[int, ...], gpu: bool
) -> None:
    keys = closed_table(rows, tokens, steps, gpu=gpu)
    assert len(keys) == len(set(keys))

    def served(kind: str, size: int, rank: int, n: int) -> bool:
        return any(
            (key.kind, key.steps) == (kind, n) and key.size >= size and VARIANTS.index(key.variant) >= rank
            for key in keys
        )

    for rank, variant in enumerate(VARIANTS):
        assert served("extend", tokens, rank, 1)
        for n in steps:
            assert variant in ("forward", "scored") or served("decode", rows, rank, n)
    for key in keys:
        assert key.forward == (key.kind == "extend" or (key.kind, key.steps) == ("decode", 1))
        for variant in ("greedy", "full") if key.forward else ():
            assert served("draw", min(key.size, rows), VARIANTS.index(variant), 1), key


@pytest.mark.parametrize(("gpu", "sizes"), [(True, [2, 16, 32, 64, 128, 256]), (False, [1, 256])])
def test_forward_programs_end_in_few_sizes_of_draws(gpu: bool, sizes: list[int]) -> None:
    keys = closed_table(256, 8192, (1, 4), gpu=gpu)
    assert sorted({key.size for key in keys if key.kind == "draw"}) == sizes


def test_steps_that_are_the_usual_ones_have_every_size() -> None:
    rows = row_buckets(256, gpu=True)
    for steps, usual in [((1,), 1), ((1, 4), 4)]:
        keys = closed_table(256, 8192, steps, gpu=True)
        variant = "forward" if usual == 1 else "greedy"
        assert [key.size for key in keys if (key.kind, key.steps, key.variant) == ("decode", usual, variant)] == rows


def test_a_step_takes_the_least_program(runner: Runner) -> None:
    choose = runner.table.choose
    assert choose("extend", 5, "greedy") == ProgramKey("extend", 64, "forward")
    assert choose("extend", 64, "full") == ProgramKey("extend", 64, "forward")
    assert choose("extend", 5, "scored") == ProgramKey("extend", 512, "scored")
    assert choose("extend", 65, "sampled") == ProgramKey("extend", 512, "forward")
    assert choose("decode", 1, "greedy", 4) == ProgramKey("decode", 1, "greedy", 4)
    assert choose("decode", 2, "greedy") == ProgramKey("decode", 4, "forward")
    assert choose("decode", 2, "sampled", 4) == ProgramKey("decode", 4, "full", 4)


def test_no_program_copies_a_pool_or_the_counts(runner: Runner) -> None:
    """Pools and state are donated and updated in place: the compiled programs hold no copy of their size."""
    pools = {_dims(pool.shape) for pool in runner._cache}
    state = jax.tree.leaves(runner._state)
    # Logits to be drawn from have the shape of what draws compute; they are told by their name below.
    others = {id(array) for array in runner._state.undrawn}
    per_token = [x.shape for x in state if x.ndim == 2 and x.shape[1] == VOCAB and id(x) not in others]
    assert per_token, "the penalties' counts"
    copies = copies_of([pool.shape for pool in runner._cache], *per_token)
    for key, compiled in runner.table.compiled.items():
        text = compiled.as_text()
        assert all(f"[{pool}]" in text for pool in pools) or key.kind in ("seed", "draw"), key
        assert not copies.findall(text), key
        assert "copy(%state_undrawn" not in text, key
        donated = sum(x.nbytes for x in runner._cache) * (key.kind != "draw") + sum(x.nbytes for x in state)
        aliased = compiled.memory_analysis().alias_size_in_bytes
        assert aliased >= donated, f"{key} aliases {aliased} of {donated} donated bytes"


def test_no_program_copies_a_pool_of_latents() -> None:
    config = EngineConfig(
        model=str(Path(__file__).parents[1] / "models" / "reference" / "deepseek-v2-lite"), max_model_len=44,
        max_num_seqs=2, max_num_batched_tokens=16, block_size=4, decode_steps=(1, 4), num_gpu_blocks_override=33,
    )  # fmt: skip
    prepared = prepare(config)
    assert prepared.plan.kv_bytes_per_token == 2 * (16 + 8) * 4  # layers, latent and rotated key, float32
    pool = (33, 4, 16 + 8)
    for key in prepared.table.keys:
        if key.kind not in ("seed", "draw") and key.variant == "greedy":
            text = prepared.table.job(key, [33]).lower().compile().as_text()
            assert f"[{_dims(pool)}]" in text
            assert not copies_of([pool]).findall(text), key


def _dims(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def copies_of(pools: list[tuple[int, ...]], *others: tuple[int, ...]) -> re.Pattern[str]:
    """Copies, in a program's text, of pools, of pools as slots, and of arrays of other shapes."""
    slots = [(pool[0] * pool[1], *pool[2:]) for pool in pools]
    shapes = "|".join({_dims(shape) for shape in (*pools, *slots, *others)})
    return re.compile(rf"\[(?:{shapes})\]\S* (?:copy|copy-start)\(")


def test_every_program_has_run(runner: Runner) -> None:
    table = runner.table
    assert set(table.compiled) == set(table.costs) == set(table.keys)
    assert table.size == len(table.keys)


class Counted:
    """A program's stand-in that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        self.runs += 1
        result = jnp.zeros(0, jnp.int32)
        return (*arguments[1:3], result) if isinstance(arguments[0], tuple) else (arguments[0], result)


def test_the_warm_up_runs_no_program_more_often_than_it_must(runner: Runner) -> None:
    programs = runner.table.programs
    keys = closed_table(256, 8192, (1, 4), gpu=True)
    table = ProgramTable(programs, keys, (), jnp.float32)
    table._harmless = lambda key: np.zeros(1, np.int32)  # type: ignore[method-assign]
    table.compiled = {key: Counted() for key in keys}  # type: ignore[misc]
    table.warm((), (), jnp.zeros(0, jnp.int32))  # type: ignore[arg-type]
    runs = {key: table.compiled[key].runs for key in keys}  # type: ignore[attr-defined]
    assert {count for key, count in runs.items() if key.kind not in ("decode", "draw")} == {1}
    assert {count for key, count in runs.items() if key.kind in ("decode", "draw")} == {2, 3}
    timed = {key for key, count in runs.items() if count == 3}
    assert set(table.seconds) == timed
    assert {(key.steps, key.variant) for key in timed} == {(4, "greedy")}
    assert sorted(key.size for key in timed) == [2, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("tokens", [*range(256, 4097, 256), 8192, 16384, 32768, 65536])
def test_programs_that_score_prompts_can_be_traced_at_all_sizes(tokens: int, runner: Runner) -> None:
    keys = closed_table(256, tokens, (1,), gpu=True)
    table = ProgramTable(runner.table.programs, keys, runner._weights, jnp.float32)
    for key in {key for key in keys if key.variant == "scored" and key.size <= 4096}:
        job = table.job(key, runner.memory_plan.sizes)
        _, _, out = jax.eval_shape(job.function, *job.arguments)
        assert out.size >= key.size


def test_the_warm_up_times_prompts_on_a_gpu(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = closed_table(256, 8192, (1, 4), gpu=True)
    table = ProgramTable(runner.table.programs, keys, (), jnp.float32)
    table._harmless = lambda key: np.zeros(1, np.int32)  # type: ignore[method-assign]
    table.compiled = {key: Counted() for key in keys}  # type: ignore[misc]
    monkeypatch.setattr("jaxllm.runner.table.jax.default_backend", lambda: "gpu")
    table.warm((), (), jnp.zeros(0, jnp.int32))  # type: ignore[arg-type]
    runs = {key.size: table.compiled[key].runs for key in keys if (key.kind, key.variant) == ("extend", "forward")}  # type: ignore[attr-defined]
    assert {size for size, count in runs.items() if count == 3} == {16, 32, 64, 128, 256, 384, 512, 768}
    assert {count for size, count in runs.items() if size >= 1024} == {2}
    assert [size for size, _ in table.extend_seconds()] == sorted(runs)


def test_steps_that_were_not_timed_are_interpolated(runner: Runner) -> None:
    table = ProgramTable(runner.table.programs, closed_table(256, 512, (1, 4), gpu=True), (), jnp.float32)
    table.seconds = {ProgramKey("decode", size, "greedy", 4): 4.0 * size for size in (2, 16, 256)}
    assert table.step_seconds(1) == 2  # that of the program of 2 rows
    assert table.step_seconds(17) == 24
    assert table.step_seconds(33) == 48
    assert table.step_seconds(250) == 256
