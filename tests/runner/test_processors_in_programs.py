"""Logits processors inside the compiled programs: who pays for them, and that rows get what they ask for."""

import dataclasses
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.core import SamplingParams
from jaxllm.errors import RequestError
from jaxllm.runner import Runner
from jaxllm.runner.programs import ProgramKey, Programs
from jaxllm.runner.state import FIRST_PARAM, pack_params
from jaxllm.sampling import Processors

from .conftest import PAGE, VOCAB, Driver, greedy, prompt_of


def operations(compiled: Any) -> Counter:
    """What a program does, by opcode and shape; parameters, tuples of them and empty arrays do nothing."""
    found = re.findall(r"= (\S+) ([a-z][\w-]*)\(", compiled.as_text())
    nothing = ("parameter", "tuple", "get-tuple-element")
    empty = re.compile(r"[\[,]0[,\]]")
    return Counter(
        (opcode, shape) for shape, opcode in found
        if opcode not in nothing and not shape.startswith("(") and not empty.search(shape)
    )  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        ProgramKey("decode", 4, "forward"), ProgramKey("decode", 4, "greedy", 4), ProgramKey("extend", 64, "forward"),
    ],
    ids=str,
)  # fmt: skip
def test_those_who_use_none_pay_for_none(runner: Runner, key: ProgramKey) -> None:
    """Greedy and sampled programs are the same with every processor in the engine and with none at all."""
    table = runner.table
    bare = dataclasses.replace(table.programs.geometry, processors=Processors([]))
    programs = Programs(table.programs.model, bare)
    function = jax.jit(programs.build(key), donate_argnums=(1, 2))
    packed = jax.ShapeDtypeStruct((programs.packed_size(key),), jnp.int32)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (runner._weights, runner._cache))
    without = function.lower(*abstract, jax.eval_shape(bare.state), packed).compile()
    assert operations(table.compiled[key]) == operations(without)
    assert operations(table.compiled[ProgramKey("decode", 4, "full", 4)]) != operations(without)


def test_the_number_of_programs_does_not_depend_on_processors(runner: Runner) -> None:
    kinds = Counter((key.kind, key.variant) for key in runner.table.keys)
    assert set(kinds) == {
        ("extend", "forward"), ("extend", "scored"), ("decode", "forward"), ("decode", "greedy"), ("decode", "sampled"),
        ("decode", "full"), ("draw", "greedy"), ("draw", "full"), ("copy", "greedy"), ("seed", "greedy"),
    }  # fmt: skip


def by_hand(runner: Runner, ids: list[int], count: int, change: Any) -> list[int]:
    """Greedy text whose logits `change(logits, output)` changes, from the model without a cache."""
    output: list[int] = []
    for _ in range(count):
        logits = runner.prompt_logits(ids + output)[-1].astype(np.float64)
        change(logits, output)
        output.append(int(logits.argmax()))
    return output


def test_rows_of_many_wishes_in_one_step(runner: Runner, driver: Driver) -> None:
    """A user's processor, a bias and a bad word beside a plain row, in steps of one token and of four."""
    prompt = prompt_of(20)
    plain = greedy(runner, prompt, 9)

    def boost(logits: np.ndarray, output: list[int]) -> None:
        logits[7] += 1.5 * len(output)

    def bias(logits: np.ndarray, output: list[int]) -> None:
        logits[11] += 6
        logits[plain[0]] -= 100

    def bad(logits: np.ndarray, output: list[int]) -> None:
        if output and output[-1] == plain[1]:
            logits[plain[2]] = -np.inf

    requests = [
        driver.request(prompt, 0, logits_processors={"boost": {"token": 7, "step": 1.5}}),
        driver.request(prompt, 1, logit_bias={11: 6, plain[0]: -100}),
        driver.request(prompt, 2, bad_words_ids=[[plain[1], plain[2]]]),
        driver.request(prompt, 3),
    ]
    driver.extend(*((request, 20) for request in requests))
    driver.decode(*requests[::-1], steps=4)
    for _ in range(4):
        driver.decode(*requests)
    expected = [by_hand(runner, prompt, 9, change) for change in (boost, bias, bad)]
    assert [request.output for request in requests] == [*expected, plain]
    assert len({tuple(output) for output in (*expected, plain)}) == 4, "or this proves little"

    again = driver.request(prompt, 1, output=expected[0][:5], logits_processors={"boost": {"token": 7, "step": 1.5}})
    driver.extend((again, 25))
    driver.decode(again, steps=4)
    assert again.output[:9] == expected[0][:9], "as it was before a preemption"
    late = driver.request(prompt, 0)
    assert driver.generate(late, 5, steps=4) == plain[:5], "the slot forgets"


def test_a_row_whose_prompt_comes_in_chunks_keeps_its_state(runner: Runner, driver: Driver) -> None:
    """Steps that draw nothing for a row leave its processors' states alone, whoever draws beside it."""
    prompt = prompt_of(40, 4)
    request = driver.request(prompt, 0, frequency_penalty=1.9)
    other = driver.request(prompt_of(9), 1, frequency_penalty=1.9)
    driver.extend((other, 9), (request, PAGE))
    driver.extend((request, 20), (other, 1))
    driver.extend((other, 1), (request, 12))
    driver.decode(request, other, steps=4)

    def penalise(logits: np.ndarray, output: list[int]) -> None:
        logits -= 1.9 * np.bincount(output, minlength=VOCAB)

    assert request.output == by_hand(runner, prompt, 5, penalise)


def test_only_allowed_tokens_are_drawn(runner: Runner, driver: Driver) -> None:
    allowed = [5, 17, 31, 32, 33, 60]
    request = driver.request(prompt_of(20), 0, allowed_token_ids=allowed, bad_words_ids=[[17]], temperature=3.0)
    assert set(driver.generate(request, 60, steps=4)) == set(allowed) - {17}


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"])
def test_logprobs_modes(runner: Runner, driver: Driver, mode: Any) -> None:
    geometry = dataclasses.replace(runner.table.programs.geometry, logprobs_mode=mode)
    programs = Programs(runner.table.programs.model, geometry)
    params = {"temperature": 0.5, "top_k": 4, "logit_bias": {3: 4.0}, "logprobs": 5}
    requests = [driver.request([1, 2], 0, **params), driver.request([1, 2], 1, **(params | {"temperature": 0}))]
    driver.extend(*((request, 2) for request in requests))  # the slots' arguments
    readings = [geometry.processors.read(request) for request in requests]
    rows = np.zeros((2, runner._state.rows.shape[1]), np.int32)
    rows[:, FIRST_PARAM:] = [
        pack_params(request, reading.active) for request, reading in zip(requests, readings, strict=True)
    ]
    logits = np.random.default_rng(2).normal(0, 3, (2, VOCAB)).astype(np.float32)

    def draw(state: Any, rows: jax.Array, logits: jax.Array) -> Any:
        slot = jnp.arange(2, dtype=jnp.int32)
        processing = programs.drawing.gather("full", state, slot, rows)
        return programs.drawing.draw("full", logits, rows, processing, jnp.full(2, 5, jnp.int32))

    drawn = jax.jit(draw)(runner._state, rows, logits)
    told = logits.astype(np.float64)
    if mode.startswith("processed"):
        told[:, 3] += 4
        told[0] /= 0.5
        told[0, told[0] < np.sort(told[0])[-4]] = -np.inf
    if mode.endswith("logprobs"):
        told -= np.log(np.exp(told).sum(-1, keepdims=True))
    tokens = np.asarray(drawn.tokens)
    np.testing.assert_allclose(drawn.logprobs.logprob, told[[0, 1], tokens], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(drawn.logprobs.top, -np.sort(-told)[:, :5], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(drawn.logprobs.rank, (told > told[[0, 1], tokens][:, None]).sum(-1) + 1)


def test_arguments_are_judged_before_a_request_is_taken(runner: Runner, driver: Driver) -> None:
    runner.check(driver.request([1], 0, logits_processors={"boost": {"token": 7, "step": 1}}))
    with pytest.raises(RequestError, match="boost: KeyError: 'step'"):
        runner.check(driver.request([1], 0, logits_processors={"boost": {"token": 7}}))
    assert SamplingParams().logits_processors == {}
