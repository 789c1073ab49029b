"""The scheduler's rules, one at a time: plans are read, and outputs are made by hand."""

import numpy as np
import pytest

from jaxllm.cache import PagePool
from jaxllm.config import CacheGroup, SchedulerConfig
from jaxllm.core import Family, FinishReason, Logprobs, Request, RowOutput, SamplingParams, StepOutput, StepPlan
from jaxllm.engine.deltas import delta_of
from jaxllm.engine.scheduler import Scheduler
from jaxllm.errors import ConfigError, QueueFullError, RequestError


def make(step_seconds=None, *, num_pages=65, **changes) -> Scheduler:
    """Over one group without a window, unless others are given."""
    groups = (CacheGroup("tokens", num_pages),)
    numbers = {"groups": groups, "page_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 64}
    return Scheduler(SchedulerConfig(**(numbers | changes)), step_seconds)


def pages(scheduler: Scheduler) -> PagePool:
    return scheduler.cache.tokens[0].pool


def ask(name: str, prompt: list[int] | int, max_tokens: int = 8, **changes) -> Request:
    """A number stands for a prompt of so many tokens that no other request shares."""
    if isinstance(prompt, int):
        prompt = [1000 * ord(name[-1]) + i for i in range(prompt)]
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=changes.pop("min_tokens", 0),
        prompt_logprobs=changes.pop("prompt_logprobs", None),
    )
    stop_ids = changes.pop("stop_ids", (0,))
    return Request(name, prompt, params, stop_ids, len(prompt) + max_tokens, seed=0, **changes)


def answer(plan: StepPlan, token: int = 7) -> StepOutput:
    """Every row that draws gets `token`, as often as it may."""
    counts = [row.count if plan.kind == "decode" else int(row.draws) for row in plan.rows]
    return StepOutput([RowOutput([token] * count) for count in counts])


def step(scheduler: Scheduler, token: int = 7) -> StepPlan:
    plan = scheduler.plan(0.0)
    scheduler.commit(plan, answer(plan, token))
    return plan


def finish_all(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        step(scheduler)


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(row.request.request_id, row.start, row.count) for row in plan.rows]


# --- progress ---


def test_a_prompt_is_computed_and_then_decoded_token_by_token():
    scheduler = make()
    request = ask("a", 5, max_tokens=3)
    scheduler.add(request)
    first = step(scheduler)
    assert (first.kind, shape(first), first.rows[0].tokens) == ("extend", [("a", 0, 5)], request.prompt)
    assert first.rows[0].fresh
    assert first.rows[0].draws
    second = step(scheduler)
    assert (second.kind, second.num_steps, shape(second)) == ("decode", 1, [("a", 5, 1)])
    assert not second.rows[0].fresh
    step(scheduler)
    assert (request.output, request.finish) == ([7, 7, 7], FinishReason.LENGTH)
    assert not scheduler.has_work
    assert scheduler.plan(0.0) is None


def test_a_step_is_planned_before_the_one_before_it_is_known():
    scheduler = make()
    request = ask("a", 5, max_tokens=3)
    scheduler.add(request)
    first = scheduler.plan(0.0)
    second = scheduler.plan(0.0)
    assert shape(second) == [("a", 5, 1)]
    assert second.rows[0].tokens == []  # on the device only
    assert request.num_inflight == 2
    scheduler.commit(first, answer(first))
    third = scheduler.plan(0.0)
    assert scheduler.plan(0.0) is None  # all three tokens are drawn or in flight
    scheduler.commit(second, answer(second))
    (delta,) = scheduler.commit(third, answer(third))
    assert (delta.token_ids, delta.finish, delta.num_output) == ([7], FinishReason.LENGTH, 3)


def test_a_long_prompt_is_cut_into_chunks_and_starves_no_stream():
    scheduler = make(max_num_batched_tokens=8)
    scheduler.add(ask("a", 3, max_tokens=20))
    step(scheduler)
    scheduler.add(ask("b", 20))
    assert shape(step(scheduler)) == [("a", 3, 1), ("b", 0, 7)]
    assert shape(step(scheduler)) == [("a", 4, 1), ("b", 7, 7)]
    last = step(scheduler)
    assert shape(last) == [("a", 5, 1), ("b", 14, 6)]
    assert [row.draws for row in last.rows] == [True, True]
    assert step(scheduler).kind == "decode"


def test_a_chunk_of_one_prompt_token_is_no_decode_row():
    scheduler = make(max_num_batched_tokens=8)
    scheduler.add(ask("a", 9))
    step(scheduler)
    plan = step(scheduler)
    assert (plan.kind, shape(plan)) == ("extend", [("a", 8, 1)])


def test_the_budget_left_by_one_prompt_goes_to_the_next():
    scheduler = make(max_num_batched_tokens=8)
    for name in "abc":
        scheduler.add(ask(name, 5))
    assert shape(step(scheduler)) == [("a", 0, 5), ("b", 0, 3)]
    assert shape(step(scheduler)) == [("a", 5, 1), ("b", 3, 2), ("c", 0, 5)]


# --- several steps at once ---


def test_several_steps_when_nobody_waits():
    scheduler = make(decode_steps=(1, 4))
    request = ask("a", 3, max_tokens=10)
    scheduler.add(request)
    step(scheduler)
    plan = step(scheduler)
    assert (plan.kind, plan.num_steps, shape(plan)) == ("decode", 4, [("a", 3, 4)])
    assert plan.rows[0].new_pages == [(0, 1, request.tables[0][1])]
    assert request.output == [7] * 5


def test_a_row_reserves_no_more_than_its_limit_allows():
    scheduler = make(decode_steps=(1, 4))
    short, long = ask("a", 3, max_tokens=3), ask("b", 3, max_tokens=20)
    scheduler.add(short)
    scheduler.add(long)
    step(scheduler)
    assert shape(step(scheduler)) == [("a", 3, 2), ("b", 3, 4)]
    assert (short.finish, long.finish) == (FinishReason.LENGTH, None)


def test_one_step_at_a_time_when_no_row_has_more_to_go():
    scheduler = make(decode_steps=(1, 4))
    scheduler.add(ask("a", 3, max_tokens=4))
    step(scheduler)
    assert step(scheduler).num_steps == 1


def test_the_stream_interval_bounds_the_steps():
    scheduler = make(step_seconds=lambda rows: 0.008 * rows, decode_steps=(1, 2, 4), stream_interval=0.02)
    scheduler.add(ask("a", 3, max_tokens=30))
    step(scheduler)
    assert step(scheduler).num_steps == 2
    scheduler.add(ask("b", 3, max_tokens=30))
    step(scheduler)
    assert step(scheduler).num_steps == 1


def test_pages_bound_the_steps():
    scheduler = make(num_pages=3, decode_steps=(1, 4))
    scheduler.add(ask("a", 2, max_tokens=6))
    scheduler.add(ask("b", 2, max_tokens=2))
    step(scheduler)
    assert step(scheduler).num_steps == 1  # four would take a third page
    assert step(scheduler).num_steps == 4  # b is gone


def test_an_arrival_ends_the_long_steps():
    scheduler = make(decode_steps=(1, 4))
    scheduler.add(ask("a", 3, max_tokens=20))
    step(scheduler)
    scheduler.add(ask("b", 3))
    assert shape(step(scheduler)) == [("a", 3, 1), ("b", 0, 3)]


def test_fewer_tokens_than_reserved_end_the_request():
    scheduler = make(decode_steps=(1, 4))
    request = ask("a", 3, max_tokens=20)
    scheduler.add(request)
    step(scheduler)
    plan = scheduler.plan(0.0)
    behind = scheduler.plan(0.0)
    (delta,) = scheduler.commit(plan, StepOutput([RowOutput([7, 0])]))
    assert (delta.token_ids, delta.finish, delta.stop_token) == ([7, 0], FinishReason.STOP, 0)
    assert scheduler.commit(behind, StepOutput([RowOutput([])])) == []
    assert pages(scheduler).free == 64


def test_tokens_behind_a_stop_that_only_the_host_knows_are_dropped():
    scheduler = make(decode_steps=(1, 4))
    scheduler.add(ask("a", 3, max_tokens=20))
    step(scheduler)
    plan = scheduler.plan(0.0)
    (delta,) = scheduler.commit(plan, StepOutput([RowOutput([7, 0, 5, 5])]))
    assert (delta.token_ids, delta.finish) == ([7, 0], FinishReason.STOP)


def test_a_runner_that_loses_tokens_is_found_out():
    scheduler = make(decode_steps=(1, 4))
    scheduler.add(ask("a", 3, max_tokens=20))
    step(scheduler)
    plan = scheduler.plan(0.0)
    with pytest.raises(AssertionError, match="2 of 4 tokens"):
        scheduler.commit(plan, StepOutput([RowOutput([7, 7])]))


# --- who goes first ---


def test_first_come_first_served_whatever_the_priority():
    scheduler = make(max_num_seqs=1)
    scheduler.add(ask("a", 3, priority=5))
    scheduler.add(ask("b", 3, priority=0))
    assert shape(step(scheduler)) == [("a", 0, 3)]


def test_priority_then_arrival():
    scheduler = make(max_num_seqs=1, policy="priority")
    for name, priority, arrival in [("a", 1, 0.0), ("b", 0, 2.0), ("c", 0, 1.0)]:
        scheduler.add(ask(name, 3, max_tokens=1, priority=priority, arrival=arrival))
    assert [shape(step(scheduler))[0][0] for _ in range(3)] == ["c", "b", "a"]


def test_a_more_urgent_prompt_goes_before_the_rest_of_a_long_one():
    scheduler = make(max_num_batched_tokens=8, policy="priority")
    scheduler.add(ask("a", 20, priority=1))
    step(scheduler)
    scheduler.add(ask("b", 5, priority=0))
    assert shape(step(scheduler)) == [("b", 0, 5), ("a", 8, 3)]


@pytest.mark.parametrize(("policy", "running"), [("priority", {"a", "c"}), ("fcfs", {"a", "b"})])
@pytest.mark.parametrize("scarce", [{"max_num_seqs": 2}, {"num_pages": 6}])
def test_a_more_urgent_request_displaces_the_least_urgent_that_runs(policy, running, scarce):
    scheduler = make(policy=policy, **scarce)
    requests = [ask("a", 7, max_tokens=9, priority=1), ask("b", 7, max_tokens=9, priority=2)]
    for one in requests:
        scheduler.add(one)
    step(scheduler)
    requests.append(ask("c", 7, max_tokens=1, priority=0))
    scheduler.add(requests[-1])
    assert {name for name, _, _ in shape(step(scheduler))} == running
    finish_all(scheduler)
    assert [len(one.output) for one in requests] == [9, 9, 1]
    assert requests[0].num_preemptions == 0


def test_a_request_displaces_none_of_its_own_priority():
    scheduler = make(max_num_seqs=1, policy="priority")
    scheduler.add(ask("a", 3, max_tokens=3, priority=1, arrival=2.0))
    step(scheduler)
    scheduler.add(ask("b", 3, max_tokens=3, priority=1, arrival=1.0))
    assert [name for name, _, _ in shape(step(scheduler))] == ["a"]


def test_nobody_overtakes_the_first_in_the_queue():
    scheduler = make(num_pages=9)
    scheduler.add(ask("a", 16, max_tokens=4))
    step(scheduler)
    scheduler.add(ask("b", 20, max_tokens=4))
    scheduler.add(ask("c", 3, max_tokens=1))
    assert shape(step(scheduler)) == [("a", 16, 1)]
    assert [request.request_id for request in scheduler.waiting] == ["b", "c"]


# --- slots and pages ---


def test_slots_bound_the_running():
    scheduler = make(max_num_seqs=2)
    for name in "abc":
        scheduler.add(ask(name, 3, max_tokens=2))
    plan = step(scheduler)
    assert shape(plan) == [("a", 0, 3), ("b", 0, 3)]
    assert {row.slot for row in plan.rows} == {0, 1}
    step(scheduler)
    third = step(scheduler)
    assert shape(third) == [("c", 0, 3)]
    assert third.rows[0].fresh


def test_slot_and_pages_come_back_with_the_last_step_planned():
    scheduler = make(max_num_seqs=1)
    first, second = ask("a", 3, max_tokens=1), ask("b", 3, max_tokens=1)
    scheduler.add(first)
    scheduler.add(second)
    one = scheduler.plan(0.0)
    two = scheduler.plan(0.0)  # no commit between: a's only token is in flight
    assert (shape(one), shape(two)) == ([("a", 0, 3)], [("b", 0, 3)])
    assert scheduler.load().running == 2
    scheduler.commit(one, answer(one))
    scheduler.commit(two, answer(two))
    assert (first.output, second.output) == ([7], [7])
    assert pages(scheduler).free == 64


def test_when_pages_run_out_the_latest_is_preempted_and_computed_again():
    scheduler = make(num_pages=5)
    first, second = ask("a", 7, max_tokens=9), ask("b", 7, max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    step(scheduler)  # both fill their second page
    plan = step(scheduler)
    assert shape(plan) == [("a", 8, 1)]
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert (second.slot, second.tables, second.output) == (-1, [], [7, 7])
    while first.finish is None:
        step(scheduler)
    again = step(scheduler)
    row = again.rows[0]
    assert row.fresh
    assert row.start + row.count == 9
    assert row.tokens == ([*second.prompt, 7, 7])[row.start :]
    finish_all(scheduler)
    assert second.output == [7] * 9
    assert scheduler.load().preemptions == 1


def test_the_least_urgent_is_preempted():
    scheduler = make(num_pages=5, policy="priority")
    urgent, other = ask("a", 7, max_tokens=9, priority=0), ask("b", 7, max_tokens=9, priority=1)
    scheduler.add(other)
    scheduler.add(urgent)
    for _ in range(3):
        step(scheduler)
    assert (urgent.num_preemptions, other.num_preemptions) == (0, 1)


def test_tokens_in_flight_when_preempted_count_and_come_before_the_next_try():
    scheduler = make(num_pages=5)
    first, second = ask("a", 7, max_tokens=9), ask("b", 7, max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    flying = scheduler.plan(0.0)
    scheduler.plan(0.0)
    assert (second.num_preemptions, second.num_inflight) == (1, 1)
    scheduler.abort("a")
    assert scheduler.plan(0.0) is None  # pages enough now, but b's token is not known
    scheduler.commit(flying, answer(flying, token=5))
    assert second.output == [7, 5]
    row = scheduler.plan(0.0).rows[0]
    assert row.start + row.count == 9


def test_a_preempted_request_may_end_by_its_tokens_in_flight():
    scheduler = make(num_pages=5)
    first, second = ask("a", 7, max_tokens=9), ask("b", 7, max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    step(scheduler)
    flying = scheduler.plan(0.0)
    scheduler.plan(0.0)
    deltas = scheduler.commit(flying, StepOutput([RowOutput([7]), RowOutput([0])]))
    assert [delta.finish for delta in deltas] == [None, FinishReason.STOP]
    assert scheduler.waiting == []


# --- ends from outside ---


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_an_abort_gives_everything_back_at_once(steps):
    scheduler = make(max_num_batched_tokens=8)
    request = ask("a", 10)
    scheduler.add(request)
    plans = [scheduler.plan(0.0) for _ in range(steps)]
    assert scheduler.abort("a") is request
    assert (request.finish, request.slot, request.tables) == (FinishReason.ABORT, -1, [])
    assert pages(scheduler).free == 64
    assert not scheduler.has_work
    for plan in plans:
        assert scheduler.commit(plan, answer(plan)) == []
    assert request.output == []
    delta = delta_of(request, now=3.0)
    assert (delta.finish, delta.finished, delta.token_ids) == (FinishReason.ABORT, 3.0, [])


def test_an_abort_may_say_why():
    scheduler = make()
    scheduler.add(ask("a", 3))
    assert scheduler.abort("a", FinishReason.STOP).finish is FinishReason.STOP


def test_only_what_runs_can_be_aborted():
    scheduler = make()
    scheduler.add(ask("a", 3))
    scheduler.abort("a")
    assert scheduler.abort("a") is None
    assert scheduler.abort("b") is None


def test_a_name_may_be_used_again_while_a_step_of_its_last_bearer_is_in_flight():
    scheduler = make()
    scheduler.add(ask("a", 3))
    flying = scheduler.plan(0.0)
    scheduler.abort("a")
    again = ask("a", 3)
    scheduler.add(again)
    assert scheduler.commit(flying, answer(flying)) == []
    assert again.output == []


def test_deadlines():
    scheduler = make(max_num_seqs=1)
    running, waiting, patient = ask("a", 3, deadline=5.0), ask("b", 3, deadline=4.0), ask("c", 3)
    for request in (running, waiting, patient):
        scheduler.add(request)
    step(scheduler)
    assert scheduler.expire(3.9) == []
    assert scheduler.expire(4.0) == [waiting]
    assert scheduler.expire(9.0) == [running]
    assert (running.finish, waiting.finish, patient.finish) == (FinishReason.DEADLINE, FinishReason.DEADLINE, None)
    finish_all(scheduler)
    assert scheduler.expire(99.0) == []


def test_a_deadline_ends_a_prompt_that_is_half_computed():
    scheduler = make()
    long, other = ask("a", 40, deadline=5.0), ask("b", 3)
    scheduler.add(long)
    flying = scheduler.plan(0.0)
    assert shape(flying) == [("a", 0, 16)]
    assert scheduler.expire(5.0) == [long]
    assert (long.finish, long.slot, long.tables) == (FinishReason.DEADLINE, -1, [])
    assert pages(scheduler).free == pages(scheduler).num_pages
    assert scheduler.commit(flying, answer(flying)) == []
    scheduler.add(other)
    finish_all(scheduler)
    assert other.output == [7] * 8


# --- what is refused ---


def test_the_queue_is_bounded():
    scheduler = make(max_queued=2, max_num_seqs=1)
    for name in "ab":
        scheduler.add(ask(name, 3))
    with pytest.raises(QueueFullError, match="2 requests wait"):
        scheduler.add(ask("c", 3))
    step(scheduler)
    scheduler.add(ask("c", 3))


def test_a_preempted_request_takes_no_place_in_the_queue():
    """It was let in before: an arrival that the queue had room for is not refused because of it."""
    scheduler = make(num_pages=5, max_queued=1)
    first, second = ask("a", 7, max_tokens=9), ask("b", 7, max_tokens=9)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    while not second.num_preemptions:
        step(scheduler)
    scheduler.add(ask("c", 3))
    assert scheduler.load().waiting == 2
    with pytest.raises(QueueFullError, match="1 requests wait"):
        scheduler.add(ask("d", 3))
    finish_all(scheduler)
    assert (first.output, second.output) == ([7] * 9, [7] * 9)


def test_what_a_preempted_request_finds_of_its_own_is_no_cache_hit():
    scheduler = make(num_pages=5)
    first, second = ask("a", 7, max_tokens=9), ask("b", 7, max_tokens=9)
    scheduler.add(first)
    scheduler.add(second)
    finish_all(scheduler)
    assert second.num_preemptions == 1
    assert second.num_cached == 0
    assert (scheduler.load().prefix_queries, scheduler.load().prefix_hits) == (14, 0)


def test_a_request_that_could_never_fit_is_refused():
    scheduler = make(num_pages=4)
    with pytest.raises(RequestError, match="need 4 pages of 4, and the KV cache has 3"):
        scheduler.add(ask("a", 10, max_tokens=4))
    scheduler.add(ask("a", 10, max_tokens=3))  # the last token's keys are never computed
    finish_all(scheduler)


@pytest.mark.parametrize("prompt", [[], [1, 2, 3]])
def test_a_prompt_needs_a_token_and_room(prompt):
    with pytest.raises(RequestError, match=f"prompt has {len(prompt)} tokens"):
        make().add(Request("a", prompt, SamplingParams(), (), max_total=3, seed=0))


def test_a_name_in_use_is_refused():
    scheduler = make()
    scheduler.add(ask("a", 3))
    with pytest.raises(RequestError, match="request_id='a'"):
        scheduler.add(ask("a", 3))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"num_pages": 1}, "num_pages=1"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens=3 is below max_num_seqs=4"),
        ({"decode_steps": (1, 8)}, r"decode_steps=\(1, 8\)"),
        ({"decode_steps": (2,)}, r"decode_steps=\(2,\)"),
    ],
)
def test_numbers_that_cannot_work_are_refused(changes, why):
    with pytest.raises(ConfigError, match=why):
        make(**changes)


# --- the prefix cache ---


def test_full_pages_are_shared_and_the_next_is_copied():
    scheduler = make()
    first = ask("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=20)
    scheduler.add(first)
    step(scheduler)
    second = ask("b", [1, 2, 3, 4, 5, 6, 0, 0])
    scheduler.add(second)
    plan = step(scheduler)
    assert second.num_cached == 6
    assert second.tables[0][0] == first.tables[0][0]
    assert plan.copies == [(0, first.tables[0][1], second.tables[0][1])]
    assert plan.rows[1].tokens == [0, 0]
    assert pages(scheduler).holders(first.tables[0][0]) == 2
    assert pages(scheduler).holders(first.tables[0][1]) == 1
    load = scheduler.load()
    assert (load.prefix_queries, load.prefix_hits) == (9 + 8, 6)


def test_pages_are_shared_as_soon_as_their_step_is_planned():
    scheduler = make(max_num_batched_tokens=9)
    scheduler.add(ask("a", [1, 2, 3, 4, 5, 6, 7, 8]))
    scheduler.add(ask("b", [1, 2, 3, 4, 5, 6, 7, 9]))
    scheduler.plan(0.0)  # a, and the first token of b
    scheduler.add(ask("c", [1, 2, 3, 4, 5, 6, 7, 9]))
    plan = scheduler.plan(0.0)
    assert shape(plan) == [("a", 8, 1), ("b", 1, 7), ("c", 7, 1)]


def test_the_last_prompt_token_is_always_computed():
    scheduler = make()
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    scheduler.add(ask("a", prompt, max_tokens=1))
    step(scheduler)
    scheduler.add(ask("b", prompt, max_tokens=1))
    plan = step(scheduler)
    assert shape(plan) == [("b", 7, 1)]
    assert len(plan.copies) == 1


def test_answers_are_cached_to_their_last_computed_token():
    scheduler = make()
    scheduler.add(ask("a", [1, 2, 3], max_tokens=4))
    finish_all(scheduler)  # 1 2 3 7 | 7 7 (7): the last one was never computed
    follow = ask("b", [1, 2, 3, 7, 7, 7, 7, 5])
    scheduler.add(follow)
    plan = step(scheduler)
    assert (follow.num_cached, len(plan.copies)) == (6, 1)


def test_salts_do_not_share():
    scheduler = make()
    prompt = [1, 2, 3, 4, 5, 6]
    scheduler.add(ask("a", prompt, cache_salt="mine"))
    step(scheduler)
    stranger, friend = ask("b", prompt, cache_salt="yours"), ask("c", prompt, cache_salt="mine")
    scheduler.add(stranger)
    scheduler.add(friend)
    step(scheduler)
    assert (stranger.num_cached, friend.num_cached) == (0, 4)


def test_prompt_logprobs_take_nothing_from_the_cache():
    scheduler = make()
    prompt = [1, 2, 3, 4, 5, 6]
    scheduler.add(ask("a", prompt))
    step(scheduler)
    request = ask("b", prompt, prompt_logprobs=1)
    scheduler.add(request)
    assert shape(step(scheduler))[1] == ("b", 0, 6)
    assert request.num_cached == 0


def test_prefix_caching_can_be_off():
    scheduler = make(enable_prefix_caching=False)
    for name in "ab":
        scheduler.add(ask(name, [1, 2, 3, 4, 5, 6], max_tokens=2))
        finish_all(scheduler)
    assert (scheduler.load().prefix_queries, pages(scheduler).idle, len(scheduler.cache.tokens[0].index)) == (0, 0, 0)


def test_cached_pages_are_evicted_when_pages_run_short():
    scheduler = make(num_pages=5)
    scheduler.add(ask("a", 8, max_tokens=1))
    scheduler.add(ask("b", 8, max_tokens=1))
    finish_all(scheduler)
    assert (pages(scheduler).idle, scheduler.load().pages_free) == (4, 4)
    scheduler.add(ask("c", 8, max_tokens=1))
    finish_all(scheduler)
    scheduler.add(ask("b", 8, max_tokens=1))
    assert shape(step(scheduler)) == [("b", 7, 1)]  # a's pages went, being older


def test_a_page_to_copy_is_given_up_where_it_leaves_too_few():
    scheduler = make(num_pages=3)
    scheduler.add(ask("a", [1, 2, 3, 4, 5, 6, 7], max_tokens=2))
    finish_all(scheduler)
    scheduler.add(ask("b", [1, 2, 3, 4, 5, 6, 7], max_tokens=2))
    plan = step(scheduler)
    assert (plan.copies, shape(plan)) == ([], [("b", 4, 3)])


def test_flush_forgets_what_nobody_holds():
    scheduler = make()
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    scheduler.add(ask("a", prompt, max_tokens=1))
    finish_all(scheduler)
    assert scheduler.flush_prefix_cache() == 2
    again = ask("b", prompt, max_tokens=1)
    scheduler.add(again)
    finish_all(scheduler)
    assert again.num_cached == 0


def test_a_sample_that_waits_at_a_flush_takes_nothing_from_before_it():
    scheduler = make(max_num_seqs=2)
    family, stem = Family("f"), [1, 2, 3, 4, 5, 6]
    first = ask("first", stem, family=family)
    waiting = ask("waiting", stem, max_tokens=2, leader=first, family=family)
    for request in (ask("other", 1, max_tokens=3), first, waiting):
        scheduler.add(request)
    step(scheduler)
    step(scheduler)
    assert waiting.slot < 0
    scheduler.flush_prefix_cache()
    while waiting.finish is None:
        plan = step(scheduler)
        assert not plan.copies
    assert waiting.num_cached == 0


def test_what_was_running_at_a_flush_is_never_shared_after_it():
    scheduler = make()
    running = ask("a", [9] * 5, max_tokens=9)
    scheduler.add(running)
    step(scheduler)
    assert scheduler.flush_prefix_cache() == 0
    finish_all(scheduler)
    assert running.output == [7] * 9
    scheduler.add(ask("b", [9] * 4, max_tokens=1))  # a's first page anew
    finish_all(scheduler)
    follow = ask("c", [9] * 5 + [7] * 7, max_tokens=1)
    scheduler.add(follow)
    finish_all(scheduler)
    assert follow.num_cached == 4


# --- what owners are told ---


def test_prompt_logprobs_come_whole_with_the_first_token():
    def chunk(positions) -> Logprobs:
        token = np.array([*positions], np.float32)
        ranks = np.ones(len(token), np.int32)
        return Logprobs(token, ranks, ranks[:, None], token[:, None])

    scheduler = make(max_num_batched_tokens=4)
    scheduler.add(ask("a", 10, prompt_logprobs=1))
    deltas = []
    for _ in range(3):
        plan = scheduler.plan(0.0)
        (row,) = plan.rows
        output = RowOutput([7] * row.draws, None, chunk(range(row.start + 1, row.start + row.count + 1)))
        deltas += scheduler.commit(plan, StepOutput([output]))
    (delta,) = deltas
    assert delta.token_ids == [7]
    assert delta.prompt_logprobs.token.tolist() == list(range(1, 10))
    assert delta.prompt_logprobs.top.shape == (9, 1)
    plan = scheduler.plan(0.0)
    assert scheduler.commit(plan, answer(plan))[0].prompt_logprobs is None


def test_logprobs_end_with_the_tokens():
    scheduler = make(decode_steps=(1, 4))
    scheduler.add(ask("a", 3, max_tokens=20))
    step(scheduler)
    plan = scheduler.plan(0.0)
    four = Logprobs(np.arange(4.0), np.arange(4), np.zeros((4, 1)), np.zeros((4, 1)))
    (delta,) = scheduler.commit(plan, StepOutput([RowOutput([7, 0, 5, 5], four)]))
    assert delta.logprobs.token.tolist() == [0.0, 1.0]


def test_counts_and_times_are_on_every_delta():
    scheduler = make()
    scheduler.add(ask("a", 5, max_tokens=2, arrival=1.0))
    plan = scheduler.plan(2.0)
    (first,) = scheduler.commit(plan, answer(plan))
    plan = scheduler.plan(3.0)
    (last,) = scheduler.commit(plan, answer(plan))
    for delta in (first, last):
        assert (delta.num_prompt, delta.num_cached, delta.arrival, delta.first_scheduled) == (5, 0, 1.0, 2.0)
        assert delta.first_token == first.first_token is not None
    assert (first.num_output, last.num_output) == (1, 2)
    assert (first.finished, last.finished is not None) == (None, True)


def test_load_counts():
    scheduler = make(max_num_seqs=1)
    scheduler.add(ask("a", 5, max_tokens=3))
    scheduler.add(ask("b", 5, max_tokens=3))
    step(scheduler)
    load = scheduler.load()
    assert (load.running, load.waiting, load.pages_total, load.pages_free) == (1, 1, 64, 62)
    assert (load.prompt_tokens, load.generation_tokens) == (5, 1)
    finish_all(scheduler)
    load = scheduler.load()
    assert (load.running, load.waiting, load.pages_free, load.cache_usage) == (0, 0, 64, 0.0)
    assert (load.prompt_tokens, load.generation_tokens) == (10, 6)
    assert (load.steps_extend, load.steps_decode) == (2, 4)


# --- sources ---

WITH_SOURCES = (CacheGroup("tokens", 65), CacheGroup("source", 8))


def read(plan: StepPlan) -> list[str]:
    """Whose sources the encoder reads before the step."""
    return [row.request.request_id for row in plan.rows if row.fresh and not row.request.source_read]


def test_sources_that_are_read_at_once_have_no_more_tokens_than_a_step():
    scheduler = make(groups=WITH_SOURCES)
    for name, length in (("a", 9), ("b", 7), ("c", 1)):
        scheduler.add(ask(name, 3, source=[ord(name)] * length))
    assert read(step(scheduler)) == ["a", "b"]
    plan = step(scheduler)
    assert read(plan) == ["c"]
    assert shape(plan) == [("a", 3, 1), ("b", 3, 1), ("c", 0, 3)]
    assert [len(row.tables[1]) for row in plan.rows] == [3, 2, 1]
    with pytest.raises(RequestError, match="a source of 17 tokens is read in one step, and a step has at most 16"):
        scheduler.add(ask("d", 3, source=[1] * 17))


def test_a_source_is_read_once_for_all_who_bring_it_while_its_pages_stay():
    scheduler = make(groups=WITH_SOURCES)
    source, sources = [5] * 10, scheduler.cache.sources[0].pool
    for name, salt in (("a", ""), ("b", ""), ("c", "salt")):
        scheduler.add(ask(name, 3, source=source, cache_salt=salt))
    plan = step(scheduler)
    assert read(plan) == ["a"], "one of them, and of the other salt there is no room in this step"
    own, shared = (row.tables[1] for row in plan.rows)
    assert own == shared
    assert sources.free == 4
    finish_all(scheduler)
    assert sources.free == 7
    scheduler.add(ask("d", 3, source=source))
    assert read(step(scheduler)) == []
    finish_all(scheduler)
    scheduler.add(ask("e", 3, source=[6] * 16))  # takes the place of what lay idle longest, the other salt's
    assert read(step(scheduler)) == ["e"]
    finish_all(scheduler)
    for name, salt, expected in (("f", "", []), ("g", "salt", ["g"])):
        scheduler.add(ask(name, 3, source=source, cache_salt=salt))
        assert read(step(scheduler)) == expected
        finish_all(scheduler)
    assert scheduler.flush_prefix_cache() > 0
    scheduler.add(ask("h", 3, source=source))
    assert read(step(scheduler)) == ["h"]


def test_without_prefixes_a_source_is_read_for_each():
    scheduler = make(groups=WITH_SOURCES, enable_prefix_caching=False)
    for name in "ab":
        scheduler.add(ask(name, 3, source=[5] * 8))
    plan = step(scheduler)
    assert read(plan) == ["a", "b"]
    assert plan.rows[0].tables[1] != plan.rows[1].tables[1]
    finish_all(scheduler)
    assert scheduler.cache.sources[0].pool.idle == 0


def test_sources_for_which_there_are_no_pages_wait():
    scheduler = make(groups=WITH_SOURCES)
    for name in "ab":
        scheduler.add(ask(name, 3, max_tokens=4, source=[ord(name)] * 16))
    assert [read(step(scheduler)) for _ in range(6)] == [["a"], [], [], [], ["b"], []]
