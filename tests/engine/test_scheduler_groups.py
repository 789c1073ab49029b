"""What windows, recurrent states and sources ask of the scheduler, one rule at a time. Pages have 4 tokens."""

import pytest

from jaxllm.cache import CacheSpace
from jaxllm.config import CacheGroup, SchedulerConfig
from jaxllm.core import FinishReason, Request, RowOutput, SamplingParams, StepOutput, StepPlan
from jaxllm.engine.scheduler import Scheduler
from jaxllm.errors import ConfigError, RequestError

FULL = CacheGroup("tokens", 65)
STATE = CacheGroup("state", 9)


def window(tokens: int, num_pages: int = 65) -> CacheGroup:
    return CacheGroup("tokens", num_pages, tokens)


def make(*groups: CacheGroup, **changes) -> Scheduler:
    numbers = {"page_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 64}
    return Scheduler(SchedulerConfig(groups=groups, **(numbers | changes)))


def ask(name: str, prompt: list[int] | int, max_tokens: int = 8, **changes) -> Request:
    """A number stands for a prompt of so many tokens that no other request shares."""
    if isinstance(prompt, int):
        prompt = [1000 * ord(name[-1]) + i for i in range(prompt)]
    params = SamplingParams(max_tokens=max_tokens)
    return Request(name, prompt, params, (0,), len(prompt) + max_tokens, seed=0, **changes)


def answer(plan: StepPlan, token: int = 7) -> StepOutput:
    counts = [row.count if plan.kind == "decode" else int(row.draws) for row in plan.rows]
    return StepOutput([RowOutput([token] * count) for count in counts])


def step(scheduler: Scheduler, token: int = 7) -> StepPlan:
    plan = scheduler.plan(0.0)
    scheduler.commit(plan, answer(plan, token))
    return plan


def shape(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(row.request.request_id, row.start, row.count) for row in plan.rows]


def finish_all(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        step(scheduler)
    cache = scheduler.cache
    for group in [*cache.tokens, *cache.sources, *cache.states]:
        assert group.pool.free == group.pool.num_pages


# --- windows ---


def test_pages_behind_the_window_return_while_the_request_runs():
    scheduler = make(FULL, window(6), max_num_batched_tokens=8)
    request = ask("a", 24, max_tokens=12)
    scheduler.add(request)
    full, windowed = (group.pool for group in scheduler.cache.tokens)
    held = []
    while scheduler.has_work:
        plan = step(scheduler)
        if request.tables:
            held.append(sum(page > 0 for page in request.tables[1]))
            assert windowed.num_pages - windowed.free == held[-1]
            seen = max(0, plan.rows[0].start - 5) // 4  # the first page that this step still reads
            assert all(request.tables[1][seen:])
    # A chunk of 8 and the 5 tokens before it lie in 4 pages at most; a token and those before it in 3.
    assert max(held) == 4
    assert set(held[-4:]) <= {2, 3}
    assert (full.free, windowed.free) == (64, 64)


def test_a_long_prompt_needs_no_more_of_a_windows_pages_than_a_window_and_a_chunk():
    scheduler = make(window(6, num_pages=4), max_num_batched_tokens=4)
    request = ask("a", 50, max_tokens=10)
    scheduler.add(request)
    finish_all(scheduler)
    assert (len(request.output), request.num_preemptions) == (10, 0)


def test_a_chunk_is_as_long_as_the_windows_pages_allow():
    scheduler = make(window(6, num_pages=4))
    scheduler.add(ask("a", 30))
    # Three pages: 12 tokens first; then the page of 8 to 11 and of 4 to 7 are seen, and one is left.
    assert [shape(step(scheduler))[0] for _ in range(3)] == [("a", 0, 12), ("a", 12, 4), ("a", 16, 4)]
    finish_all(scheduler)


def test_windows_that_leave_each_other_no_room_give_way_in_order():
    scheduler = make(window(9, num_pages=6), max_num_batched_tokens=8)
    first, second = ask("a", 40, max_tokens=4), ask("b", 40, max_tokens=4)
    scheduler.add(first)
    scheduler.add(second)
    ends = []
    while scheduler.has_work:
        plan = step(scheduler)
        ends += [row.request.request_id for row in plan.rows if row.request.finish]
    assert ends == ["a", "b"]
    assert first.num_preemptions == 0
    finish_all(scheduler)


def test_a_hit_needs_the_windows_pages_behind_it():
    scheduler = make(FULL, window(6))
    first = ask("a", 20, max_tokens=4)
    scheduler.add(first)
    finish_all(scheduler)
    windows = scheduler.cache.tokens[1]
    follow = ask("b", [*first.prompt, 1, 2], max_tokens=1)
    scheduler.add(follow)
    assert shape(step(scheduler)) == [("b", 20, 2)]
    assert follow.num_cached == 20
    windows.pool.release(windows.pool.take(windows.pool.free))  # every page's content is lost
    again = ask("c", [*first.prompt, 3, 4], max_tokens=1)
    scheduler.add(again)
    step(scheduler)
    assert again.num_cached == 0
    finish_all(scheduler)


def test_a_hit_shares_the_pages_in_sight_alone():
    scheduler = make(FULL, window(6))
    first = ask("a", 20, max_tokens=4)
    scheduler.add(first)
    finish_all(scheduler)
    follow = ask("b", [*first.prompt, 1, 2])
    scheduler.add(follow)
    step(scheduler)
    full, windowed = follow.tables
    assert all(full)
    assert windowed[:3] == [0, 0, 0]  # 20 sees 15, in the fourth page
    assert all(windowed[3:])
    finish_all(scheduler)


def test_a_window_smaller_than_its_pages_is_refused():
    scheduler = make(window(9, num_pages=3))
    with pytest.raises(RequestError, match="need 3 pages of 4, and the KV cache has 2"):
        scheduler.add(ask("a", 20))
    scheduler.add(ask("b", 3, max_tokens=5))
    finish_all(scheduler)


# --- recurrent states ---


def test_a_prompt_is_cut_where_its_last_full_page_ends_and_its_state_is_copied():
    scheduler = make(STATE)
    request = ask("a", 14)
    scheduler.add(request)
    first = step(scheduler)
    assert (shape(first), first.copies) == ([("a", 0, 12)], [])
    second = step(scheduler)
    assert shape(second) == [("a", 12, 2)]
    ((group, source, target),) = second.copies
    assert (group, source) == (0, request.tables[0][0])
    assert target != source
    assert scheduler.cache.states[0].pool.is_idle(target)
    # Another one goes on from there, in an entry of its own.
    other = ask("b", [*request.prompt[:13], 5, 6])
    scheduler.add(other)
    third = step(scheduler)
    assert shape(third) == [("a", 14, 1), ("b", 12, 3)]
    assert third.copies == [(0, target, other.tables[0][0])]
    assert other.num_cached == 12
    finish_all(scheduler)


def test_without_prefix_caching_no_prompt_is_cut():
    scheduler = make(STATE, enable_prefix_caching=False)
    scheduler.add(ask("a", 14))
    plan = step(scheduler)
    assert shape(plan) == [("a", 0, 14)]
    finish_all(scheduler)
    assert len(scheduler.cache.states[0].index) == 0


def test_a_prompt_that_parts_from_anothers_leaves_a_snapshot_where_it_does():
    """With pages of tokens it is known where that is; the third to come that way then finds it."""
    scheduler = make(FULL, STATE)
    stem = list(range(8))
    scheduler.add(ask("a", stem + [100 + i for i in range(6)], max_tokens=1))
    finish_all(scheduler)
    second = ask("b", stem + [200 + i for i in range(6)], max_tokens=1)
    scheduler.add(second)
    assert [shape(step(scheduler))[0] for _ in range(3)] == [("b", 0, 8), ("b", 8, 4), ("b", 12, 2)]
    third = ask("c", stem + [300 + i for i in range(3)], max_tokens=1)
    scheduler.add(third)
    assert shape(step(scheduler)) == [("c", 8, 3)]
    assert (second.num_cached, third.num_cached) == (0, 8)


def test_a_conversation_goes_on_where_its_last_answer_ended():
    scheduler = make(FULL, STATE)
    first = ask("a", 6)
    scheduler.add(first)
    for _ in range(3):
        step(scheduler)
    plan, zombie = scheduler.plan(0.0), scheduler.plan(0.0)
    scheduler.commit(plan, answer(plan, token=0))  # an end-of-text id: the device stands still behind it
    scheduler.commit(zombie, StepOutput([RowOutput([])]))
    assert first.finish is FinishReason.STOP
    follow = ask("b", first.prompt + first.output + [1, 2, 3])
    scheduler.add(follow)
    step(scheduler)
    assert follow.num_cached == len(first.prompt) + len(first.output) - 1
    finish_all(scheduler)


@pytest.mark.parametrize("steps", [1, 4])
def test_what_is_in_flight_when_a_request_is_aborted_leaves_no_state(steps):
    scheduler = make(STATE, decode_steps=(1, steps))
    scheduler.add(ask("a", 3, max_tokens=20))
    step(scheduler)
    plan = scheduler.plan(0.0)
    assert (plan.kind, plan.num_steps) == ("decode", steps)
    if steps == 1:
        scheduler.plan(0.0)
    scheduler.abort("a")
    states = scheduler.cache.states[0]
    assert (len(states.index), states.pool.idle, states.pool.free) == (0, 0, 8)


def test_a_request_aborted_between_steps_leaves_its_state():
    scheduler = make(STATE, max_num_batched_tokens=5)
    request = ask("a", 18)
    scheduler.add(request)
    step(scheduler)
    scheduler.abort("a")
    again = ask("b", request.prompt)
    scheduler.add(again)
    assert shape(step(scheduler)) == [("b", 5, 5)]


def test_a_preempted_request_goes_on_from_its_state():
    scheduler = make(CacheGroup("tokens", 6), STATE)
    first, second = ask("a", 8, max_tokens=5), ask("b", 7, max_tokens=12)
    scheduler.add(first)
    scheduler.add(second)
    while not second.num_preemptions:
        step(scheduler)
    assert second.output == [7, 7]
    while not second.tables:
        plan = step(scheduler)
    assert shape(plan) == [("b", 8, 1)]  # all but the token that was drawn last
    finish_all(scheduler)
    assert (len(first.output), len(second.output)) == (5, 12)


def test_states_for_fewer_requests_than_may_run_are_refused():
    with pytest.raises(ConfigError, match=r"num_pages=5: the states of max_num_seqs=4 requests need 6 entries"):
        make(CacheGroup("state", 5))


def test_without_a_spare_entry_there_is_no_snapshot():
    scheduler = make(CacheGroup("state", 6), max_num_seqs=4)
    for name in "abcd":
        scheduler.add(ask(name, 3, max_tokens=20))
    step(scheduler)
    pool = scheduler.cache.states[0].pool
    assert (pool.free, pool.idle) == (1, 0)
    finish_all(scheduler)


# --- sources ---


def test_a_sources_pages_are_held_from_admission_to_the_end():
    scheduler = make(FULL, CacheGroup("source", 5))
    first, second = ask("a", 1, source=list(range(9))), ask("b", 1, source=list(range(1, 10)))
    scheduler.add(first)
    scheduler.add(second)
    plan = step(scheduler)
    assert shape(plan) == [("a", 0, 1)]  # three pages of four: the other waits
    assert len(first.tables[1]) == 3
    finish_all(scheduler)
    assert (first.finish, second.finish) == (FinishReason.LENGTH, FinishReason.LENGTH)


def test_what_follows_another_source_is_another_prefix():
    scheduler = make(FULL, CacheGroup("source", 9))
    prompt = list(range(10, 20))
    scheduler.add(ask("a", prompt, source=[1, 2]))
    finish_all(scheduler)
    same, other, none = (
        ask(name, prompt, source=source) for name, source in zip("bcd", ([1, 2], [1, 3], []), strict=True)
    )
    for request in (same, other, none):
        scheduler.add(request)
    finish_all(scheduler)
    assert [request.num_cached for request in (same, other, none)] == [9, 0, 0]


def test_a_source_that_could_never_be_held_is_refused():
    scheduler = make(FULL, CacheGroup("source", 3))
    with pytest.raises(RequestError, match="a source of 9 tokens needs 3 pages of 4, and the KV cache has 2"):
        scheduler.add(ask("a", 1, source=list(range(9))))


# --- no cache at all ---


def test_a_model_that_caches_nothing_computes_every_token():
    scheduler = make()
    for _ in range(2):
        scheduler.add(ask("a", 9, max_tokens=2))
        assert shape(step(scheduler)) == [("a", 0, 9)]
        finish_all(scheduler)
    assert isinstance(scheduler.cache, CacheSpace)
    assert scheduler.load().pages_total == 0
