"""Plans written by hand, against the model run without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.core import PageCopy, Row, StepPlan
from jaxllm.errors import CompileWhileServingError
from jaxllm.runner import Runner
from jaxllm.runner.state import Undrawn
from jaxllm.sampling_params import FLOAT32_MAX, MAX_STOP_TOKENS, SamplingParams

from .conftest import PAGE, VOCAB, Driver, greedy, prompt_of


def test_greedy_text_wanders(runner: Runner) -> None:
    """Or the tests below would prove little."""
    assert len(set(greedy(runner, prompt_of(20), 20))) > 8


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("length", [1, PAGE, 29])
def test_extend_then_decode(runner: Runner, driver: Driver, length: int, steps: int) -> None:
    request = driver.request(prompt_of(length), slot=2)
    expected = greedy(runner, request.prompt, 13)
    assert driver.generate(request, 13, steps) == expected


def test_chunked_prefill(runner: Runner, driver: Driver) -> None:
    request = driver.request(prompt_of(100), slot=0)
    for count in (3, 64, 32):
        assert driver.extend((request, count))[0].tokens == []
    assert driver.extend((request, 1))[0].tokens == greedy(runner, request.prompt, 1)


def test_rows_of_every_kind_in_one_step(runner: Runner, driver: Driver) -> None:
    """Decodes, a chunk, a whole prompt and the end of another in one ragged step; then all decode together."""
    requests = [driver.request(prompt_of(length, length), slot) for slot, length in enumerate((9, 90, 17, 30))]
    decoding, chunked, ending, whole = requests
    driver.extend((decoding, 9), (ending, 10))
    outputs = driver.extend((chunked, 40), (decoding, 1), (ending, 7), (whole, 30))
    assert [len(row.tokens) for row in outputs] == [0, 1, 1, 1]
    driver.extend((chunked, 50), (decoding, 1), (whole, 1))
    for _ in range(2):
        driver.decode(*requests, steps=4)
    for request in requests:
        assert request.output == greedy(runner, request.prompt, len(request.output))
    assert [len(request.output) for request in requests] == [11, 9, 9, 10]


def test_tokens_that_never_saw_the_host(runner: Runner, driver: Driver) -> None:
    """Steps submitted one behind the other, each fed what the one before drew."""
    a, b = driver.request(prompt_of(12, 1), slot=3), driver.request(prompt_of(70, 2), slot=1)
    handles = [
        driver.submit_extend((a, 12), (b, 30)),
        driver.submit_extend((a, 1), (b, 40), on_device=[a]),
        driver.submit_extend((b, 1), (a, 1), on_device=[a, b]),
        driver.submit_decode(b, a, steps=4),
        driver.submit_decode(a, b),
    ]
    for handle in handles:
        driver.collect(handle)
    assert a.output == greedy(runner, a.prompt, 8)
    assert b.output == greedy(runner, b.prompt, 7)


def test_what_waits_to_be_drawn_is_the_last_steps_alone() -> None:
    """Of the rows behind those of a step, which an earlier one left, a draw of more rows draws none."""

    def left(undrawn: Undrawn, *slots: int) -> Undrawn:
        logits = jnp.asarray(slots, jnp.float32)[:, None] * jnp.ones((1, 7))
        slot = jnp.asarray(slots, jnp.int32)
        return undrawn.write(logits, slot, slot + 10, slot != 4)

    undrawn = Undrawn(jnp.full((6, 7), jnp.nan), jnp.zeros((6, 3), jnp.int32))
    undrawn = left(left(undrawn, 5, 3, 4, 0, 1), 2, 4)
    for num_rows in (1, 2, 3, 6):
        logits, slot, at, draws = undrawn.read(num_rows)
        known = min(num_rows, 2)
        assert logits.shape == (num_rows, 7)
        assert logits[:known, 0].tolist() == [2.0, 4.0][:known]
        assert slot.tolist() == [2, 4, 6, 6, 6, 6][:num_rows]
        assert at.tolist()[:known] == [12, 14][:known]
        assert draws.tolist() == [True, False, False, False, False, False][:num_rows]


def test_a_stop_id_ends_the_row_on_the_device(runner: Runner, driver: Driver) -> None:
    text = greedy(runner, prompt_of(20), 12)
    end = next(i for i in range(2, 12) if text.index(text[i]) == i and i % 4 != 0)
    request = driver.request(prompt_of(20), slot=0, stop_ids=(text[end],))
    other = driver.request(prompt_of(20, 1), slot=1)
    driver.extend((request, 20), (other, 20))
    handles = [driver.submit_decode(request, other, steps=4) for _ in range(4)]
    lengths = [len(driver.collect(handle)[0].tokens) for handle in handles]
    assert request.output == text[: end + 1]
    full, rest = divmod(end, 4)
    assert lengths == ([4] * full + [rest] + [0] * 4)[:4]
    assert other.output == greedy(runner, other.prompt, 17)
    # A row of a request that has ended may still stand in a mixed step: it yields nothing and writes to the sink.
    before = [np.asarray(pool[driver.pages[request.request_id][0] :][:5]) for pool in runner._cache]
    request.num_computed = 20 + end
    assert driver.extend((request, 1), (other, 1), on_device=[request])[0].tokens == []
    after = [np.asarray(pool[driver.pages[request.request_id][0] :][:5]) for pool in runner._cache]
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_stop_id_as_first_token(runner: Runner, driver: Driver) -> None:
    first = greedy(runner, prompt_of(20), 1)
    request = driver.request(prompt_of(20), slot=0, stop_ids=(5, *first))
    handles = [driver.submit_extend((request, 20)), driver.submit_decode(request), driver.submit_decode(request)]
    assert [driver.collect(handle)[0].tokens for handle in handles] == [first, [], []]


@pytest.mark.parametrize("steps", [1, 4])
def test_the_limit_ends_the_row_on_the_device(runner: Runner, driver: Driver, steps: int) -> None:
    request = driver.request(prompt_of(20), slot=0, max_total=27)
    driver.extend((request, 20))
    for _ in range(8):
        driver.decode(request, steps=steps)
    assert request.output == greedy(runner, request.prompt, 7)


def test_min_tokens(runner: Runner, driver: Driver) -> None:
    """Stop ids cannot be drawn, let alone end the row, before min_tokens are out."""
    text = greedy(runner, prompt_of(20), 12)
    request = driver.request(prompt_of(20), slot=0, stop_ids=(text[0], text[2], text[3]), min_tokens=6)
    driver.generate(request, 6)
    assert not set(request.output) & set(request.stop_ids)
    ids = list(request.prompt)
    for token in request.output:
        logits = runner.prompt_logits(ids)[-1].copy()
        logits[list(request.stop_ids)] = -np.inf
        assert token == logits.argmax()
        ids.append(token)
    # From there on the row is an ordinary one.
    expected = greedy(runner, ids, 1)
    assert driver.decode(request)[0].tokens == expected


def test_a_slot_is_reused(runner: Runner, driver: Driver) -> None:
    """Nothing of the request before stays: not its end, its counts or its parameters."""
    first = driver.request(
        prompt_of(20), slot=0, max_total=24, temperature=2.0, repetition_penalty=1.9, frequency_penalty=2.0
    )
    driver.extend((first, 20))
    driver.decode(first, steps=4)
    assert len(first.output) == 4
    second = driver.request(prompt_of(15, 5), slot=0, repetition_penalty=1.5)
    assert driver.generate(second, 6) == penalised(runner, second.prompt, [], 6, repetition=1.5)
    third = driver.request(prompt_of(15, 6), slot=0)
    assert driver.generate(third, 6) == greedy(runner, third.prompt, 6)


def test_pages_are_copied_before_the_step(runner: Runner, driver: Driver) -> None:
    """A request goes on from a copy of another's pages; both then differ without disturbing each other."""
    a = driver.request(prompt_of(25), slot=0)
    driver.extend((a, 25))
    b = driver.request([*a.prompt[:21], *prompt_of(6, 9)], slot=1)
    b.num_computed = 21
    pages = zip(driver.pages[a.request_id][:3], driver.pages[b.request_id][:3], strict=True)
    pairs = [PageCopy(0, source, target) for source, target in pages]
    many = [PageCopy(0, 0, 0)] * 15  # more than one copy program takes
    driver.extend((b, 6), (a, 1), copies=[*many, *pairs])
    driver.decode(a, b, steps=4)
    assert a.output == greedy(runner, a.prompt, 6)
    assert b.output == greedy(runner, b.prompt, 5)


def penalised(
    runner: Runner, prompt: list[int], output: list[int], count: int, *, repetition: float = 1, frequency: float = 0,
    presence: float = 0,
) -> list[int]:  # fmt: skip
    """Greedy text under penalties, from the model without a cache; `output` counts as drawn."""
    output = list(output)
    for _ in range(count):
        logits = runner.prompt_logits(prompt + output)[-1].astype(np.float64)
        counts = np.bincount(output, minlength=VOCAB)
        seen = counts > 0
        seen[prompt] = True
        logits = np.where(seen, np.where(logits > 0, logits / repetition, logits * repetition), logits)
        logits -= frequency * counts + presence * (counts > 0)
        output.append(int(logits.argmax()))
    return output


def test_penalties(runner: Runner, driver: Driver) -> None:
    for slot, penalties in enumerate(({"repetition": 1.7}, {"frequency": 1.5}, {"presence": 1.9})):
        keywords = {f"{name}_penalty": value for name, value in penalties.items()}
        request = driver.request(prompt_of(20, slot), slot, **keywords)
        assert driver.generate(request, 13, steps=4) == penalised(runner, request.prompt, [], 13, **penalties)


def test_penalties_after_preemption(runner: Runner, driver: Driver) -> None:
    """The counts are rebuilt from known tokens: what was drawn before the preemption still counts as output."""
    penalties = {"frequency_penalty": 1.3, "repetition_penalty": 1.2}
    expected = penalised(runner, prompt_of(20), [], 12, frequency=1.3, repetition=1.2)
    disturber = driver.request(prompt_of(9), slot=1, **penalties)
    driver.generate(disturber, 5)
    again = driver.request(prompt_of(20), slot=1, output=expected[:6], **penalties)
    driver.extend((again, 13))
    driver.extend((again, 13))
    driver.decode(again)
    driver.decode(again, steps=4)
    assert again.output == expected


def test_penalty_counts_of_a_prompt_longer_than_one_program_takes(runner: Runner, driver: Driver) -> None:
    prompt = prompt_of(300, 3)
    request = driver.request(prompt, slot=2, repetition_penalty=1.4)
    driver.extend((request, 150))
    driver.extend((request, 150))
    assert request.output == penalised(runner, prompt, [], 1, repetition=1.4)


def test_draws_do_not_depend_on_company(runner: Runner, driver: Driver) -> None:
    """The same seeded request alone, among others, in other slots, chunks, programs, and after a preemption."""
    settings = {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "seed": 2**40 + 5}
    alone = driver.request(prompt_of(20), slot=0, **settings)
    expected = list(driver.generate(alone, 14))
    assert expected != greedy(runner, alone.prompt, 14)

    same = driver.request(prompt_of(20), slot=3, **settings)
    others = [
        driver.request(prompt_of(20), slot=0, **(settings | {"seed": 5})),
        driver.request(prompt_of(20), slot=1, **settings, sample_index=1),
        driver.request(prompt_of(33), slot=2, temperature=0.8, frequency_penalty=1.0, logprobs=2),
    ]
    driver.extend((others[0], 20), (same, 7), (others[1], 20))
    driver.extend((others[2], 33), (same, 13), (others[0], 1))
    driver.decode(*others, same, steps=4)
    for _ in range(9):
        driver.decode(same, *others)
    assert same.output == expected
    assert others[0].output[:14] != expected
    assert others[1].output[:14] != expected

    recomputed = driver.request(prompt_of(20), slot=1, output=expected[:5], **settings)
    driver.extend((recomputed, 25))
    for _ in range(2):
        driver.decode(recomputed, steps=4)
    assert recomputed.output == expected


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_logprobs_are_those_of_the_raw_logits(runner: Runner, driver: Driver) -> None:
    request = driver.request(
        prompt_of(20), slot=0, temperature=1.5, repetition_penalty=1.5, logprobs=3, min_tokens=20, stop_ids=(9,)
    )
    plain = driver.request(prompt_of(11), slot=1)
    outputs = [driver.extend((request, 20), (plain, 11))]
    outputs += [driver.decode(plain, request)[::-1], driver.decode(request, plain, steps=4)]
    assert all(row.logprobs is None for _, row in outputs)
    parts = [row.logprobs for row, _ in outputs]
    ids = request.prompt + request.output
    expected = log_softmax(runner.prompt_logits(ids)[19:-1])
    drawn = expected[np.arange(6), request.output]
    np.testing.assert_allclose(np.concatenate([p.token for p in parts]), drawn, atol=1e-4)
    np.testing.assert_array_equal(
        np.concatenate([p.rank for p in parts]), 1 + (expected > drawn[:, None]).sum(-1)
    )  # fmt: skip
    order = np.argsort(-expected, axis=-1)[:, :3]
    np.testing.assert_array_equal(np.concatenate([p.top_ids for p in parts]), order)
    np.testing.assert_allclose(
        np.concatenate([p.top for p in parts]), np.take_along_axis(expected, order, -1), atol=1e-4
    )


def test_logprobs_zero_is_the_drawn_token_alone(driver: Driver) -> None:
    request = driver.request(prompt_of(5), slot=0, logprobs=0)
    logprobs = driver.extend((request, 5))[0].logprobs
    assert logprobs.token.shape == (1,)
    assert logprobs.rank.tolist() == [1]
    assert logprobs.top.shape == (1, 0)


def test_a_row_that_ends_reports_as_many_logprobs_as_tokens(driver: Driver) -> None:
    request = driver.request(prompt_of(5), slot=0, logprobs=2, max_total=8)
    driver.extend((request, 5))
    row = driver.decode(request, steps=4)[0]
    assert len(row.tokens) == 2
    assert row.logprobs.token.shape == row.logprobs.rank.shape == (2,)
    assert row.logprobs.top.shape == (2, 2)


def test_prompt_logprobs(runner: Runner, driver: Driver) -> None:
    """In two chunks beside another row, the second longer than one block of scores."""
    request = driver.request(prompt_of(310), slot=0, prompt_logprobs=2, logprobs=1)
    other = driver.request(prompt_of(7), slot=1)
    first = driver.extend((other, 7), (request, 40))
    second = driver.extend((request, 270), (other, 1))
    assert first[0].prompt_logprobs is None
    assert second[1].prompt_logprobs is None
    assert second[0].logprobs.token.shape == (1,)
    parts = [first[1].prompt_logprobs, second[0].prompt_logprobs]
    expected = log_softmax(runner.prompt_logits(request.prompt)[:-1])
    given = expected[np.arange(309), request.prompt[1:]]
    np.testing.assert_allclose(np.concatenate([p.token for p in parts]), given, atol=2e-4)
    ranks = np.concatenate([p.rank for p in parts])
    assert (ranks == 1 + (expected > given[:, None]).sum(-1)).mean() > 0.99  # near-ties may fall either way
    top = np.sort(expected, axis=-1)[:, ::-1][:, :2]
    np.testing.assert_allclose(np.concatenate([p.top for p in parts]), top, atol=2e-4)
    assert driver.decode(request)[0].prompt_logprobs is None
    assert other.output == greedy(runner, other.prompt, 2)


def test_a_prompt_of_one_token_has_no_prompt_logprobs(driver: Driver) -> None:
    request = driver.request([5], slot=0, prompt_logprobs=1)
    row = driver.extend((request, 1))[0]
    assert row.prompt_logprobs is None
    assert len(row.tokens) == 1


def test_as_many_stop_ids_as_may_be(runner: Runner, driver: Driver) -> None:
    """The last of them ends a row on the device, and none of them is drawn before min_tokens are out."""
    text = greedy(runner, prompt_of(20), 3)
    others = [t for t in range(VOCAB) if t not in text][: MAX_STOP_TOKENS - 1]
    request = driver.request(prompt_of(20), slot=0, stop_ids=(*others, text[1]))
    driver.extend((request, 20))
    assert driver.decode(request, steps=4)[0].tokens == [text[1]]
    held = driver.request(prompt_of(20), slot=0, stop_ids=(*others, text[1]), min_tokens=6)
    assert not set(driver.generate(held, 6)[:5]) & set(held.stop_ids)


def test_the_greatest_parameters_that_are_taken_fit_the_device(runner: Runner, driver: Driver) -> None:
    """A number that overflowed the packed array would take every request's engine with it."""
    biggest = SamplingParams(
        max_tokens=None, min_tokens=2**31 - 1, temperature=FLOAT32_MAX, top_k=2**31 - 1, seed=2**63 - 1,
        repetition_penalty=FLOAT32_MAX, frequency_penalty=2.0, presence_penalty=-2.0,
    )  # fmt: skip
    fields = {field.name: getattr(biggest, field.name) for field in dataclasses.fields(biggest)}
    request = driver.request(prompt_of(20), slot=0, **fields)
    assert len(driver.generate(request, 5, steps=4)) == 5
    other = driver.request(prompt_of(20), slot=1)
    assert driver.generate(other, 3) == greedy(runner, other.prompt, 3)


def test_prompt_logits_beside_running_steps(runner: Runner, driver: Driver) -> None:
    """The research call compiles its own program, between steps and outside the guard."""
    request = driver.request(prompt_of(20), slot=0)
    handle = driver.submit_extend((request, 20))
    logits = runner.prompt_logits(prompt_of(70))
    driver.collect(handle)
    assert logits.shape == (70, VOCAB)
    assert logits.dtype == np.float32
    assert driver.decode(request)[0].tokens == greedy(runner, request.prompt, 2)[1:]


def test_a_step_outside_the_table_is_an_error_that_names_it(runner: Runner, driver: Driver) -> None:
    request = driver.request(prompt_of(20), slot=0)
    driver.extend((request, 20))
    row = Row(request, 0, 20, 2, [], False, True, [driver.pages[request.request_id]], [])
    with pytest.raises(CompileWhileServingError, match=r"decode of 1 rows x 2 steps, greedy.*decode_steps"):
        runner.submit(StepPlan("decode", [row], num_steps=2))
    row = Row(request, 0, 0, 513, [3] * 513, True, False, [[1] * 40], [])
    with pytest.raises(CompileWhileServingError, match=r"extend of 513 tokens.*512 tokens, scored"):
        runner.submit(StepPlan("extend", [row]))


def test_a_compile_inside_the_serving_path_is_noticed(
    runner: Runner, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = driver.request(prompt_of(20), slot=0)
    run = runner.table.run

    def careless(*args: object) -> object:
        jax.jit(lambda x: x * 3)(np.arange(5, dtype=np.int32))
        return run(*args)

    monkeypatch.setattr(runner.table, "run", careless)
    with pytest.raises(CompileWhileServingError, match=r"compiled while serving: .*lambda"):
        driver.submit_extend((request, 20))


def test_what_the_runner_tells_the_rooms_above(runner: Runner, driver: Driver) -> None:
    info, numbers = runner.info, runner.scheduler_config
    assert (info.architecture, info.vocab_size, info.max_model_len) == ("LlamaForCausalLM", VOCAB, 320)
    assert (info.dtype, info.eos_token_ids, info.max_logprobs) == ("float32", (2,), 5)
    assert info.num_parameters == sum(x.size for x in runner._weights)
    assert (numbers.page_size, numbers.max_num_seqs, numbers.decode_steps) == (PAGE, 4, (1, 4))
    (group,) = numbers.groups
    assert group.num_pages == runner.memory_plan.num_pages == runner._cache[0].shape[0]
    assert runner.table.compile_seconds > 0
    for rows in (1, 3, 4):
        assert 0 < runner.step_seconds(rows) < 1
    before = runner.table.programs_run
    driver.extend((driver.request(prompt_of(20), slot=0), 20))
    assert runner.table.programs_run == before + 2, "a forward program, and its draw"


def test_what_programs_work_on_stays_where_it_is(runner: Runner, driver: Driver) -> None:
    """Pools and state keep their addresses from step to step: a GPU's command buffers hold them."""

    def addresses() -> list[int]:
        return [x.unsafe_buffer_pointer() for x in jax.tree.leaves((runner._cache, runner._state)) if x.size]

    first, second = driver.request(prompt_of(20), slot=0), driver.request(prompt_of(30), slot=1, temperature=0.8)
    before = addresses()
    driver.extend((first, 20), (second, 30))
    driver.decode(first, second)
    driver.decode(first, second, steps=4)
    assert addresses() == before
