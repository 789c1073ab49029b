"""How many prompt tokens a step may compute, and how often, by times made up here."""

from collections.abc import Iterator

import pytest

from jaxllm.config import CacheGroup, SchedulerConfig
from jaxllm.core import Request, RowOutput, SamplingParams, StepOutput, StepPlan
from jaxllm.engine.pace import HOLD, PATIENCE, SHARE, Pace
from jaxllm.engine.scheduler import Scheduler

EXTENDS = [(16 << i, 0.005 + (16 << i) * 2e-5) for i in range(10)]  # 16 to 8,192 tokens, 5 to 169 ms
MOST = 8192


def pace(interval: float = 0.015, extends=EXTENDS) -> Pace:
    return Pace(interval, lambda rows: 0.005, extends)


def room(pace: Pace, num_decoding: int, num_prompts: int, todo: int = 32000, hurry: bool = False) -> int:
    return pace.room(MOST - num_decoding, num_decoding, num_prompts, lambda: todo, hurry)


def test_a_chunk_beside_streams_takes_no_longer_than_their_interval():
    assert room(pace(), 32, 1) == 256 - 32  # 256 tokens take 10 ms, 512 take 15.2
    assert room(pace(0.016), 32, 1) == 256 - 32  # as good as all of it
    assert room(pace(0.022), 32, 1) == 512 - 32
    assert room(pace(0.064), 32, 1) == 2048 - 32


@pytest.mark.parametrize(
    ("num_decoding", "num_prompts", "interval", "extends"),
    [(0, 1, 0.015, EXTENDS), (32, 1, 0.25, EXTENDS), (32, 1, 0.015, [])],
    ids=["nobody decodes", "nobody minds", "nothing is known"],
)
def test_where_nothing_is_bounded(num_decoding, num_prompts, interval, extends):
    assert room(pace(interval, extends), num_decoding, num_prompts) == MOST - num_decoding


def test_where_many_wait_steps_may_take_longer():
    assert room(pace(), 32, 2) == 256 - 32
    assert room(pace(), 32, 3) == 2048 - 32  # 46 ms, and 4,096 tokens take 87
    assert room(pace(), 1, 60) == 2048 - 1


def test_where_many_decode_no_prompt_is_one_of_few():
    assert room(pace(), 63, 1) == 256 - 63
    assert room(pace(), 64, 1) == 2048 - 64
    assert room(pace(), 128, 1) == 4096 - 128


def test_among_a_crowd_prompts_fill_a_step_or_wait_a_little_for_others():
    mine = pace()
    assert room(mine, 128, 3, todo=4096 - 128) == 4096 - 128
    for _ in range(HOLD):
        assert room(mine, 128, 3, todo=4095 - 128) == 0
        mine.earn(128, 1)
    assert room(mine, 128, 3, todo=4095 - 128) == 4096 - 128
    mine.spend(4095, 128)
    assert room(mine, 128, 1, todo=100) == 0
    assert room(mine, 128, 1, todo=100, hurry=True) == 4096 - 128


def test_nobody_waits_for_prompts_that_are_not_there():
    mine = pace()
    for _ in range(2 * HOLD):
        room(mine, 128, 0, todo=0)
        mine.earn(128, 1)
    assert room(mine, 128, 1, todo=100) == 0  # it has its own time to wait
    assert room(pace(extends=[]), 128, 1, todo=100) == MOST - 128  # and where nothing is known of steps none


def test_a_chunk_finds_room_whatever_the_interval():
    assert room(pace(0.001), 50, 1) == 64 - 50
    assert room(pace(0.001), 16, 1) == 32 - 16
    assert room(pace(0.001), 250, 1) == 512 - 250  # six tokens of 256 would be none


def test_decodes_may_fill_a_step():
    mine = pace(0.001)
    for _ in range(2):
        assert mine.room(0, 64, 1, lambda: 30000, hurry=False) == 0
        mine.spend(128, 64)


def test_prompts_take_their_share_of_the_time():
    mine = pace()
    extra = decoding = 0.0
    for _ in range(400):
        if room(mine, 32, 1):
            mine.spend(256, 32)
            extra += EXTENDS[4][1] - 0.005
        else:
            mine.earn(32, 1)
            decoding += 0.005
    assert SHARE - 0.04 < extra / (extra + decoding) <= SHARE + 0.005  # in whole steps it comes to a little less


def test_a_prompt_that_would_take_too_long_is_computed_at_every_step():
    mine = pace()
    tokens = 224
    each = EXTENDS[4][1] - 0.005
    enough = int(PATIENCE * SHARE / each * tokens)
    assert enough > MOST
    for todo, free in ((enough - tokens, 0), (enough + tokens, tokens)):
        assert room(mine, 32, 1, todo)
        mine.spend(256, 32)
        assert room(mine, 32, 1, todo) == free


def test_far_into_a_prompt_a_step_computes_less_of_it():
    mine = pace()
    assert room(mine, 16, 1) == 256 - 16
    for _ in range(9):
        mine.learn(256, 0.0101 + 0.016)  # 1/16 ms a token, so that 64 take 10.3 ms and 128 take 15.6
    assert room(mine, 16, 1) == 64 - 16
    assert room(mine, 16, 3) == 512 - 16  # 47 ms
    for _ in range(9):
        mine.learn(64, 0.001)  # less than at a prompt's start is no less
    assert room(mine, 16, 1) == 256 - 16


def test_one_step_that_was_held_up_is_soon_forgotten():
    mine = pace()
    mine.learn(256, 0.110)
    assert room(mine, 16, 1) < 240
    for _ in range(6):
        mine.learn(64, 0.0063)
    assert room(mine, 16, 1) == 240


def test_a_crowd_does_not_look_how_far_prompts_are():
    mine = pace()
    for _ in range(9):
        mine.learn(4096, 0.120)
    assert room(mine, 128, 60) == 4096 - 128
    assert room(mine, 64, 60) == 1024 - 64


def test_what_a_prompt_takes_of_the_time_counts_its_depth():
    mine = pace()
    for _ in range(9):
        mine.learn(64, 0.0063 + 64 / 16e3)
    room(mine, 16, 1, todo=9000)
    mine.spend(64, 16)
    waited = 0
    while not room(mine, 16, 1, todo=9000):
        mine.earn(16, 1)
        waited += 1
    assert waited == 5  # 5.3 ms beyond a decode step, of the time of which the prompt is to have a fifth


def test_the_rest_of_an_answer_does_not_wait():
    mine = pace()
    room(mine, 32, 1)
    mine.spend(256, 32)
    assert room(mine, 32, 1) == 0
    assert room(mine, 32, 1, hurry=True) == 224


def test_short_prompts_are_computed_at_once():
    mine = pace()
    for _ in range(3):
        assert room(mine, 32, 1, todo=MOST - 32) == 224
        mine.spend(256, 32)


def test_what_a_step_without_bounds_took_is_not_owed():
    mine = pace()
    room(mine, 0, 3)
    mine.spend(8192, 0)
    assert room(mine, 32, 1) == 224


def plans(scheduler: Scheduler) -> Iterator[StepPlan]:
    while scheduler.has_work:
        plan = scheduler.plan(0.0)
        yield plan
        counts = [row.count if plan.kind == "decode" else int(row.draws) for row in plan.rows]
        scheduler.commit(plan, StepOutput([RowOutput([7] * count) for count in counts]))


def test_a_long_prompt_among_streams():
    config = SchedulerConfig(
        groups=(CacheGroup("tokens", 5000),), page_size=16, max_num_seqs=40, max_num_batched_tokens=8192,
        max_model_len=33000, decode_steps=(1, 4),
    )  # fmt: skip
    scheduler = Scheduler(config, lambda rows: 0.005, EXTENDS)

    def ask(name: str, prompt: int, tokens: int) -> Request:
        ids = [hash(name) % 1000 + i for i in range(prompt)]
        return Request(name, ids, SamplingParams(max_tokens=tokens), (), prompt + tokens, seed=0)

    for i in range(32):
        scheduler.add(ask(f"stream {i}", 128, 900))
    steps = plans(scheduler)
    first = next(steps)
    assert first.num_tokens == 32 * 128  # nobody decodes: nothing is held back
    for _ in range(5):
        assert next(steps).kind == "decode"
    long = ask("long", 30000, 4)
    scheduler.add(long)
    sizes, seconds = [], 0.0
    for plan in steps:
        seconds += 0.005 * plan.num_steps if plan.kind == "decode" else dict(EXTENDS)[256]
        sizes.append(plan.num_tokens if plan.kind == "extend" else 0)
        if long.num_computed >= 30000:
            break
    assert max(sizes) == 256
    last = next(i for i, size in enumerate(reversed(sizes)) if not size)  # of the end, which is short, every step
    sizes = sizes[: len(sizes) - last]
    assert seconds < 1.2 * PATIENCE
    assert sizes.count(0) > 2 * (len(sizes) - sizes.count(0))
    assert sum(len(plan.rows) for plan in steps) > 32 * 100  # the streams were not done before
