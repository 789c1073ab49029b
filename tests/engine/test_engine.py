"""The loop without a device: every request ends once, whatever happens around it."""

import random
import time
from dataclasses import replace
from typing import Any

import pytest
from echo_runner import EOS, VOCABULARY, EchoRunner, answer, echo_engine

from jaxllm.core import Delta, FinishReason, SamplingParams
from jaxllm.engine import Engine
from jaxllm.errors import EngineDeadError, QueueFullError, RequestError


def run(engine: Engine) -> dict[str, list[Delta]]:
    """Step until nothing is left to do; the deltas by request."""
    deltas: dict[str, list[Delta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_requests_of_many_lengths_get_their_own_tokens() -> None:
    engine, draw = echo_engine(), random.Random(0)
    prompts = {f"r{i}": [draw.randrange(VOCABULARY - 1) for _ in range(draw.randint(1, 60))] for i in range(40)}
    lengths = {name: draw.randint(1, 40) for name in prompts}
    for name, prompt in prompts.items():
        engine.add(engine.make_request(prompt, SamplingParams(max_tokens=lengths[name]), request_id=name))
    deltas = run(engine)
    assert deltas.keys() == prompts.keys()
    for name, prompt in prompts.items():
        assert tokens(deltas[name]) == answer(prompt, lengths[name])
        *before, last = deltas[name]
        assert all(delta.finish is None for delta in before)
        assert last.finish is FinishReason.LENGTH
        assert last.num_prompt == len(prompt)
        assert last.num_output == lengths[name]
        assert last.arrival <= last.first_scheduled <= last.first_token <= last.finished
    load = engine.load()
    assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)
    assert load.generation_tokens == sum(lengths.values())
    assert load.steps_extend + load.steps_decode == len(engine.runner.plans)


def test_a_small_pool_preempts_and_changes_no_token() -> None:
    engine = echo_engine(num_pages=13, max_num_seqs=4)
    prompts = [[i + 1] * 5 for i in range(4)]
    for i, prompt in enumerate(prompts):
        engine.add(engine.make_request(prompt, SamplingParams(max_tokens=30), request_id=str(i)))
    deltas = run(engine)
    assert engine.load().preemptions > 0
    for i, prompt in enumerate(prompts):
        assert tokens(deltas[str(i)]) == answer(prompt, 30)


def test_the_next_step_is_submitted_before_the_last_is_collected() -> None:
    runner = EchoRunner(decode_steps=(1,))
    order: list[str] = []
    submit, collect = runner.submit, runner.collect
    runner.submit = lambda plan: (order.append(f"submit {len(order)}"), submit(plan))[1]  # type: ignore[method-assign]
    runner.collect = lambda handle: (order.append("collect"), collect(handle))[1]  # type: ignore[method-assign]
    engine = Engine(runner)
    engine.add(engine.make_request([1, 2, 3], SamplingParams(max_tokens=4)))
    run(engine)
    kinds = [entry.split()[0] for entry in order]
    assert kinds == ["submit", "submit", "collect", "submit", "collect", "submit", "collect", "collect"]


def test_stop_tokens_end_a_request() -> None:
    engine = echo_engine()
    expected = answer([7], 20)
    request = engine.make_request([7], SamplingParams(max_tokens=20, stop_token_ids=(expected[4],)), request_id="r")
    assert request.stop_ids == (EOS, expected[4])
    engine.add(request)
    deltas = run(engine)["r"]
    end = expected.index(expected[4]) + 1
    assert tokens(deltas) == expected[:end]
    assert (deltas[-1].finish, deltas[-1].stop_token) == (FinishReason.STOP, expected[4])


def test_min_tokens_holds_the_stop_back() -> None:
    engine = echo_engine()
    expected = answer([7], 20)
    params = SamplingParams(max_tokens=20, min_tokens=10, stop_token_ids=(expected[4],))
    engine.add(engine.make_request([7], params, request_id="r"))
    assert len(tokens(run(engine)["r"])) >= 10


def test_abort_ends_at_once_and_frees_everything() -> None:
    engine = echo_engine()
    engine.add(engine.make_request([1, 2, 3], SamplingParams(max_tokens=100), request_id="gone"))
    engine.add(engine.make_request([4, 5, 6], SamplingParams(max_tokens=20), request_id="stays"))
    drawn = [delta for _ in range(3) for delta in engine.step()]
    assert engine.abort("gone")
    assert not engine.abort("gone")
    assert not engine.abort("never was")
    assert engine.load().running == 1
    rest = run(engine)
    assert [delta.finish for delta in rest["gone"]] == [FinishReason.ABORT]
    assert rest["gone"][0].token_ids == []
    stays = tokens([delta for delta in drawn if delta.request_id == "stays"] + rest["stays"])
    assert stays == answer([4, 5, 6], 20)
    assert engine.load().pages_free == engine.load().pages_total


def test_an_id_is_free_again_when_its_request_has_ended() -> None:
    engine = echo_engine()
    for _ in range(2):
        engine.add(engine.make_request([1], SamplingParams(max_tokens=3), request_id="r"))
        with pytest.raises(RequestError, match="a request of this id is running") as caught:
            engine.add(engine.make_request([2], SamplingParams(max_tokens=3), request_id="r"))
        assert caught.value.param == "request_id"
        assert tokens(run(engine)["r"]) == answer([1], 3)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1), (2, 2)])
def test_an_id_is_one_requests_whatever_its_samples(first: int, second: int) -> None:
    engine = echo_engine()
    engine.add(engine.make_request([1], SamplingParams(max_tokens=3, n=first), request_id="r"))
    with pytest.raises(RequestError, match="a request of this id is running"):
        engine.add(engine.make_request([2], SamplingParams(max_tokens=3, n=second), request_id="r"))
    deltas = run(engine)["r"]
    assert {delta.index for delta in deltas} == set(range(first))
    assert sum(delta.finish is not None for delta in deltas) == first


@pytest.mark.parametrize("seconds", [-1.0, 0.05])
def test_a_deadline_ends_a_request(seconds: float) -> None:
    engine = echo_engine(step_time=0.01, decode_steps=(1,))
    request = engine.make_request(
        [1, 2], SamplingParams(max_tokens=100), request_id="r", deadline=time.monotonic() + seconds
    )
    engine.add(request)
    deltas = run(engine)["r"]
    assert [delta.finish for delta in deltas][-1] is FinishReason.DEADLINE
    assert sum(delta.finish is not None for delta in deltas) == 1
    if seconds > 0:
        assert 0 < deltas[-1].num_output < 100
        assert tokens(deltas) == answer([1, 2], deltas[-1].num_output)
    assert engine.load().pages_free == engine.load().pages_total


def test_a_full_queue_refuses_and_the_rest_goes_on() -> None:
    engine = echo_engine(max_queued=2)
    for i in range(2):
        engine.add(engine.make_request([1], SamplingParams(max_tokens=3), request_id=str(i)))
    with pytest.raises(QueueFullError, match="--max-queued"):
        engine.add(engine.make_request([1], SamplingParams(max_tokens=3)))
    assert {name: tokens(deltas) for name, deltas in run(engine).items()} == dict.fromkeys("01", answer([1], 3))


def test_a_failing_runner_ends_every_request_with_its_reason() -> None:
    engine = echo_engine(fail_at=3, decode_steps=(1,))
    for i in range(12):  # more than run at once
        engine.add(engine.make_request([i], SamplingParams(max_tokens=50), request_id=str(i)))
    with pytest.raises(EngineDeadError, match="RuntimeError: the device fell off the bus"):
        run(engine)
    ends = engine.take_ended()
    assert sorted(int(delta.request_id) for delta in ends) == list(range(12))
    assert all(delta.finish is FinishReason.ERROR and "fell off the bus" in str(delta.error) for delta in ends)
    assert not engine.has_work
    assert not engine.abort("0")
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        engine.add(engine.make_request([1], SamplingParams()))
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        engine.step()


def test_the_last_step_is_on_record() -> None:
    engine = echo_engine(decode_steps=(1,))
    engine.add(engine.make_request([1, 2, 3], SamplingParams(max_tokens=2)))
    engine.step()
    assert engine.last_step is None
    engine.step()
    assert engine.last_step is not None
    assert (engine.last_step.kind, engine.last_step.num_rows, engine.last_step.num_tokens) == ("extend", 1, 3)
    engine.step()
    assert (engine.last_step.kind, engine.last_step.num_rows, engine.last_step.num_tokens) == ("decode", 1, 1)


def test_where_the_time_of_steps_goes() -> None:
    """A device that takes 20 ms a step, and a host that takes next to nothing."""
    engine = echo_engine(decode_steps=(1,))
    collect = engine.runner.collect

    def slow(handle: Any) -> Any:
        time.sleep(0.02)
        return collect(handle)

    engine.runner.collect = slow  # type: ignore[method-assign]
    engine.add(engine.make_request([1, 2, 3], SamplingParams(max_tokens=4)))
    run(engine)
    before = replace(engine.times)
    engine.add(engine.make_request([1, 2, 3], SamplingParams(max_tokens=3)))
    run(engine)
    times = engine.times.since(before)
    assert before.steps == 4
    assert times.steps == 3
    assert 0.06 <= times.waited <= times.device
    assert 0 < times.host < times.waited


def test_flush_forgets_cached_prefixes() -> None:
    engine = echo_engine()
    for expected_hits in (0, 8):
        engine.add(engine.make_request(list(range(10)), SamplingParams(max_tokens=1), request_id="r"))
        assert run(engine)["r"][0].num_cached >= expected_hits
    assert engine.flush_prefix_cache() > 0
    engine.add(engine.make_request(list(range(10)), SamplingParams(max_tokens=1), request_id="r"))
    assert run(engine)["r"][0].num_cached == 0
