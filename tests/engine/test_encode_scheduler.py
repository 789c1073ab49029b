"""Whole sequences, batched by tokens: who runs when, and what is said at the end. No device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.config import SchedulerConfig
from jaxllm.core import EncodeOutput, EncodePlan, FinishReason, Pooling, PoolingParams, PoolingRequest
from jaxllm.engine.encode import EncodeScheduler, finish
from jaxllm.errors import QueueFullError, RequestError

EMBED = Pooling(task="embed", size=4, sequence="cls", per_token=True, activation="normalize")


def scheduler(**options) -> EncodeScheduler:
    sizes = {"max_num_seqs": 3, "max_num_batched_tokens": 10, "max_model_len": 10, "max_queued": 5} | options
    return EncodeScheduler(SchedulerConfig(groups=(), page_size=64, **sizes), EMBED)


def request(name: str, length: int = 2, **options) -> PoolingRequest:
    return PoolingRequest(name, list(range(1, length + 1)), PoolingParams(), per_token=False, **options)


def names(plan: EncodePlan | None) -> list[str]:
    return [] if plan is None else [row.request_id for row in plan.rows]


def output(plan: EncodePlan) -> EncodeOutput:
    return EncodeOutput([np.full(4, len(row.prompt), np.float32) for row in plan.rows])


def test_a_step_takes_what_its_tokens_and_rows_allow_in_order():
    s = scheduler()
    for name, length in (("a", 4), ("b", 6), ("c", 1), ("d", 1), ("e", 1)):
        s.add(request(name, length))
    assert names(s.plan(0.0)) == ["a", "b"]  # c would be an eleventh token
    assert names(s.plan(0.0)) == ["c", "d", "e"]
    for i in range(4):
        s.add(request(f"x{i}", 1))
    assert names(s.plan(0.0)) == ["x0", "x1", "x2"]  # three rows at most
    assert (s.load().running, s.load().waiting, s.load().steps_encode) == (8, 1, 3)


def test_nobody_overtakes_the_first_that_does_not_fit():
    s = scheduler()
    for name, length in (("a", 6), ("b", 5), ("c", 1)):
        s.add(request(name, length))
    assert names(s.plan(0.0)) == ["a"]
    assert names(s.plan(0.0)) == ["b", "c"]
    assert s.plan(0.0) is None


def test_priority_runs_first_under_its_policy_alone():
    for policy, order in (("priority", ["urgent", "plain", "idle"]), ("fcfs", ["idle", "plain", "urgent"])):
        s = scheduler(policy=policy)
        for name, priority in (("idle", 5), ("plain", 0), ("urgent", -1)):
            s.add(request(name, priority=priority, arrival=1.0))
        assert names(s.plan(0.0)) == order


def test_the_end_brings_the_values():
    s = scheduler()
    s.add(request("a", 3, arrival=7.0))
    plan = s.plan(8.0)
    (delta,) = s.commit(plan, output(plan))
    assert (delta.request_id, delta.finish, delta.token_ids, delta.num_prompt) == ("a", FinishReason.STOP, [], 3)
    assert (delta.arrival, delta.first_scheduled) == (7.0, 8.0)
    np.testing.assert_allclose(delta.pooled, [0.5] * 4)
    assert not s.has_work
    assert s.load().prompt_tokens == 3
    s.add(request("a"))  # the name is free again


def test_ends_from_outside_while_waiting_and_while_running():
    s = scheduler()
    s.add(request("runs", 9))
    s.add(request("late", 9, deadline=5.0))
    s.add(request("waits", 9))
    plan = s.plan(0.0)
    assert s.expire(4.9) == []
    assert [r.request_id for r in s.expire(5.0)] == ["late"]
    assert s.abort("runs").finish is FinishReason.ABORT
    assert s.abort("waits", FinishReason.STOP).finish is FinishReason.STOP
    assert s.abort("nobody") is None
    assert s.plan(6.0) is None
    assert s.commit(plan, output(plan)) == []  # it ended meanwhile
    assert not s.has_work
    assert (s.load().running, s.load().waiting) == (0, 0)


def test_what_is_refused_leaves_nothing_behind():
    s = scheduler(max_queued=2)
    s.add(request("a", 9))
    with pytest.raises(RequestError, match="a request of this id is running"):
        s.add(request("a"))
    with pytest.raises(RequestError, match="a step computes 10 at most"):
        s.add(request("long", 11))
    with pytest.raises(RequestError, match="it needs one at least"):
        s.add(request("empty", 0))
    s.add(request("b", 9))
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        s.add(request("c"))
    assert names(s.plan(0.0)) == ["a"]
    s.add(request("c"))
    assert s.flush_prefix_cache() == 0


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(-2, 2), st.integers(0, 40)), max_size=30), st.integers(1, 4))
def test_every_request_ends_once_and_no_step_is_too_large(arrivals, rows):
    """arrivals: tokens, priority, and the number of the request that its arrival has aborted, if it runs."""
    s = scheduler(max_num_seqs=rows, max_queued=100, policy="priority")
    ended, aborted, number = [], [], 0
    before: EncodePlan | None = None
    while number < len(arrivals) or s.has_work or before:
        if number < len(arrivals):
            length, priority, victim = arrivals[number]
            s.add(request(str(number), length, priority=priority))
            aborted += [str(victim)] * (s.abort(str(victim)) is not None)
            number += 1
        plan = s.plan(0.0)
        if plan is not None:
            assert 0 < len(plan.rows) <= rows
            assert plan.num_tokens <= 10
        if before is not None:
            ended += [delta.request_id for delta in s.commit(before, output(before))]
        before = plan
    assert sorted(ended + aborted, key=int) == [str(i) for i in range(len(arrivals))]


def test_values_as_a_request_wants_them():
    values = np.asarray([[3.0, 4.0, 100.0, -100.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    unit = finish(values, PoolingParams(dimensions=2), EMBED)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(finish(values, PoolingParams(use_activation=False), EMBED), values)
    plain = Pooling(task="embed", size=4, sequence="mean", per_token=True, activation="none")
    np.testing.assert_array_equal(finish(values, PoolingParams(), plain), values)
    np.testing.assert_allclose(
        np.linalg.norm(finish(values[0], PoolingParams(use_activation=True), plain)), 1, rtol=1e-6
    )

    def scores(activation: str, size: int = 4) -> Pooling:
        return Pooling(task="classify", size=size, sequence="last", per_token=False, activation=activation)

    shares = finish(values, PoolingParams(), scores("softmax"))
    np.testing.assert_allclose(shares, [[0, 0, 1, 0], [0.25] * 4], atol=1e-6)
    halves = finish(values, PoolingParams(), scores("sigmoid"))
    np.testing.assert_allclose(halves, [[0.9525741, 0.9820138, 1, 0], [0.5] * 4], atol=1e-6)
    np.testing.assert_array_equal(finish(values, PoolingParams(), scores("none")), values)
    np.testing.assert_allclose(finish(values, PoolingParams(use_activation=True), scores("none")), shares)
    np.testing.assert_allclose(
        finish(values[:, :1], PoolingParams(use_activation=True), scores("none", size=1)), halves[:, :1], atol=1e-6
    )
    assert {x.dtype for x in (unit, shares, halves)} == {np.dtype(np.float32)}
