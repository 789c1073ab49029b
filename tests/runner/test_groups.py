"""Models with windows, recurrent states and both, in the engine: what it says is what the reference says.

Pools begin as NaN, page 0 included: a token that sees what none wrote, or what lies behind its window, says so.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import EngineConfig
from jaxllm.core import SamplingParams
from jaxllm.engine import Engine
from jaxllm.runner import plan
from jaxllm.runner.packing import COPIES
from jaxllm.runner.programs import ProgramKey

from .test_table import copies_of

REFERENCE = Path(__file__).parents[1] / "models" / "reference"
CASES = {
    "gemma3-two-rotations": [("tokens", None), ("tokens", 6)],
    "mistral-window": [("tokens", 5)],
    "mamba2-groups": [("state", None)],
    "jamba-dense-tied-biases": [("tokens", None), ("state", None)],
}


def greedy_table(max_rows: int, max_tokens: int, steps: Sequence[int], **options: bool) -> list[ProgramKey]:
    """As few programs as do what is asked for here: steps of one row are followed by draws of max_rows."""
    keys = [ProgramKey("decode", rows, "forward" if n == 1 else "greedy", n) for rows in (1, max_rows) for n in steps]
    keys += [ProgramKey("extend", 16, "forward"), ProgramKey("draw", max_rows)]
    return [*keys, ProgramKey("copy", COPIES), ProgramKey("seed", 16)]


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[str, Engine]:
    """Three at a time, in pages of 4, so few that they drive each other out; chunks of 12; 1 and 4 steps."""
    config = EngineConfig(
        model=str(REFERENCE / request.param), dtype="float32", block_size=4, max_num_seqs=3, max_model_len=32,
        max_num_batched_tokens=12, decode_steps=(1, 4), num_gpu_blocks_override=9, compilation_cache_dir="",
        stream_interval_ms=10_000,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "closed_table", greedy_table)
        engine = Engine.start(config)
    poison(engine)
    return request.param, engine


def poison(engine: Engine) -> None:
    runner = engine.runner
    runner._cache = tuple(jnp.full_like(pool, jnp.nan) for pool in runner._cache)


def recorded(name: str) -> list[tuple[list[int], list[int]]]:
    """Prompts, and what follows each."""
    with np.load(REFERENCE / name / "reference.npz") as values:
        prompts = np.split(values["ids"], np.cumsum(values["lengths"])[:-1])
        return [(ids.tolist(), greedy) for ids, greedy in zip(prompts, values["greedy"].tolist(), strict=True)]


def run(engine: Engine, *prompts: tuple[list[int], int]) -> list:
    """The requests (prompt, new tokens), all at once, run to their ends."""
    requests = []
    for prompt, count in prompts:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        requests.append(engine.make_request(prompt, params))
        engine.add(requests[-1])
    while engine.has_work:
        engine.step()
    load = engine.load()
    assert load.pages_free == load.pages_total
    return requests


def test_the_groups_are_those_of_the_layers(case):
    name, engine = case
    groups = engine.runner.memory_plan.groups
    assert [(share.group.kind, share.group.window) for share in groups] == CASES[name]
    assert sum(share.bytes for share in groups) == sum(pool.nbytes for pool in engine.runner._cache)


def test_alone_in_chunks_and_in_several_steps_at_once(case):
    name, engine = case
    before = engine.load().steps_decode
    for prompt, greedy in recorded(name):
        engine.flush_prefix_cache()
        poison(engine)
        (request,) = run(engine, (prompt, len(greedy)))
        assert request.output == greedy
        assert request.num_cached == 0
    assert engine.load().steps_decode - before < 4 * 7, "several tokens a step"


def test_together_while_pages_run_short(case):
    name, engine = case
    engine.flush_prefix_cache()
    before = engine.load().preemptions
    cases = recorded(name)
    requests = run(engine, *((prompt, len(greedy)) for prompt, greedy in [*cases, *reversed(cases)]))
    assert [request.output for request in requests] == [greedy for _, greedy in [*cases, *reversed(cases)]]
    assert CASES[name][0] != ("tokens", None) or engine.load().preemptions > before


def test_after_a_prefix_hit(case):
    name, engine = case
    prompt, greedy = recorded(name)[3]
    engine.flush_prefix_cache()
    poison(engine)
    run(engine, (prompt, len(greedy)))
    # Where the prompt's last full page ends there are pages, and a state; the answer's pages are there as well.
    (request,) = run(engine, (prompt, len(greedy)))
    assert request.output == greedy
    assert request.num_cached >= (len(prompt) - 1) // 4 * 4
    (request,) = run(engine, ([*prompt, *greedy[:5]], 3))
    assert request.output == greedy[5:]
    assert request.num_cached >= (len(prompt) - 1) // 4 * 4


def test_no_program_copies_a_pool(case):
    runner = case[1].runner
    copies = copies_of([pool.shape for pool in runner._cache])
    for key, compiled in runner.table.compiled.items():
        assert not copies.findall(compiled.as_text()), key
