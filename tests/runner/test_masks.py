"""Steps whose draws wait for masks: what is drawn stays within them, and nobody else notices."""

import numpy as np
import pytest
from languages import Language

from jaxllm.core import Request
from jaxllm.engine.constrained import Masks
from jaxllm.runner import Handle, Runner

from .conftest import VOCAB, Driver, greedy, prompt_of
from .test_processors_in_programs import by_hand
from .test_runner import log_softmax


def language(seed: int) -> Language:
    """Every state allows a few tokens at random, and the text never ends."""
    draw = np.random.default_rng(seed)
    states = [draw.choice(np.arange(3, VOCAB), draw.integers(1, 5), replace=False) for _ in range(6)]
    return Language([{int(token): int(draw.integers(0, 6)) for token in tokens} for tokens in states])


def step(driver: Driver, handle: Handle) -> None:
    """Draws under the masks of the constrained rows, which go on by what is drawn."""
    masks, failed = Masks(4, VOCAB).fill(handle.plan.rows)
    assert not failed
    driver.runner.draw(handle, masks)
    for row, output in zip(handle.plan.rows, driver.collect(handle), strict=True):
        for token in output.tokens if row.request.constraint is not None else []:
            assert row.request.constraint.accept(token)  # raises where the mask did not hold


def constrained(driver: Driver, slot: int, seed: int, **params) -> Request:
    request = driver.request(prompt_of(20, seed), slot, seed=seed, **params)
    request.constraint = language(seed)
    return request


def test_draws_keep_within_masks(runner: Runner, driver: Driver) -> None:
    requests = [
        constrained(driver, 0, 11),
        constrained(driver, 1, 12, temperature=5.0, top_p=0.9),
        constrained(driver, 2, 13, temperature=1.0, frequency_penalty=2.0, repetition_penalty=3.0),
    ]
    free = driver.request(prompt_of(33), 3)
    step(driver, driver.submit_extend((free, 33), *((request, 20) for request in requests)))
    for i in range(6):
        order = [*requests[i % 3 :], free, *requests[: i % 3]]
        step(driver, driver.submit_decode(*order))
    step(driver, driver.submit_extend((free, 1), *((request, 1) for request in requests)))  # a mixed step
    for request in requests:
        assert len(request.output) == 8
        assert language(request.seed).speaks(request.output)
    assert free.output == greedy(runner, free.prompt, 8), "a free row says what it says alone"
    driver.decode(free, steps=4)
    assert free.output == greedy(runner, free.prompt, 12), "and goes on with steps without masks"


def test_the_likeliest_of_the_allowed_tokens_is_drawn(runner: Runner, driver: Driver) -> None:
    request = constrained(driver, 2, 21)
    step(driver, driver.submit_extend((request, 20)))
    for _ in range(5):
        step(driver, driver.submit_decode(request))
    place = language(21)

    def forbid(logits: np.ndarray, output: list[int]) -> None:
        if output:
            place.accept(output[-1])
        logits[[token for token in range(VOCAB) if token not in place.allowed]] = -np.inf

    assert request.output == by_hand(runner, request.prompt, 6, forbid)


def test_a_mask_prevails_where_nothing_else_is_left(driver: Driver) -> None:
    request = driver.request(prompt_of(9), 0, allowed_token_ids=[5], temperature=1.0)
    request.constraint = Language([{7: 0, 8: 0}])
    step(driver, driver.submit_extend((request, 9)))
    for _ in range(4):
        step(driver, driver.submit_decode(request))
    assert set(request.output) <= {7, 8}


def test_log_probabilities_are_those_of_the_logits_before_the_mask(runner: Runner, driver: Driver) -> None:
    request = constrained(driver, 1, 31, logprobs=2)
    step_output = driver.submit_extend((request, 20))
    masks, _ = Masks(4, VOCAB).fill(step_output.plan.rows)
    runner.draw(step_output, masks)
    (row,) = driver.collect(step_output)
    expected = log_softmax(runner.prompt_logits(request.prompt)[19])
    np.testing.assert_allclose(row.logprobs.token, expected[row.tokens], atol=1e-4)
    np.testing.assert_array_equal(row.logprobs.top_ids[0], np.argsort(-expected)[:2])


def test_tokens_that_are_known_before_they_are_drawn(runner: Runner, driver: Driver) -> None:
    """They come as a chunk in a slot told anew, whatever was drawn in it meanwhile; processors have seen them all."""
    request = constrained(driver, 3, 41, frequency_penalty=1.9)
    request.constraint = Language([dict.fromkeys(range(3, VOCAB), 0)])  # anything goes
    step(driver, driver.submit_extend((request, 20)))
    driver.runner.draw(late := driver.submit_decode(request))  # of no use to anyone
    forced = [9, 9, 30, 9]
    request.output += forced
    request.num_inflight -= 1
    driver.fresh.add(request.request_id)
    following = driver.submit_extend((request, len(forced)))
    assert driver.runner.collect(late).rows[0].tokens
    step(driver, following)
    step(driver, driver.submit_decode(request))

    def penalise(logits: np.ndarray, output: list[int]) -> None:
        known = len(output)
        logits -= 1.9 * np.bincount(output, minlength=VOCAB)
        if 1 <= known <= len(forced):
            logits[forced[known - 1]] = np.inf

    assert request.output == by_hand(runner, request.prompt, 7, penalise)


def test_a_step_that_waits_for_masks_is_drawn_once(driver: Driver) -> None:
    request = constrained(driver, 0, 51)
    handle = driver.submit_extend((request, 20))
    with pytest.raises(AssertionError, match="drawn before it is collected"):
        driver.runner.collect(handle)
    step(driver, handle)
    with pytest.raises(AssertionError, match="nothing waits"):
        driver.runner.draw(handle)
    free = driver.request(prompt_of(5), 1, logprobs=1)
    handle = driver.submit_extend((free, 5))  # processors and log probabilities need no mask
    with pytest.raises(AssertionError, match="nothing waits"):
        driver.runner.draw(handle)
    assert driver.collect(handle)[0].tokens


def test_a_prompt_that_comes_in_chunks_draws_in_its_last(driver: Driver) -> None:
    request = constrained(driver, 0, 61, prompt_logprobs=1)
    handle = driver.submit_extend((request, 12))
    assert not handle.plan.constrained
    assert driver.collect(handle)[0].prompt_logprobs.token.shape == (12,)
    step(driver, driver.submit_extend((request, 8)))
    assert language(61).speaks(request.output)
