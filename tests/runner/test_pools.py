"""How bytes are divided among cache groups."""

import dataclasses

import pytest

from jaxllm.config import CacheGroup
from jaxllm.errors import ConfigError
from jaxllm.runner.pools import Demand, GroupPlan, divide, exactly

FULL = GroupPlan(CacheGroup("tokens"), 100)
WINDOW = GroupPlan(CacheGroup("tokens", window=17), 400)  # two pages and one token
STATE = GroupPlan(CacheGroup("state"), 1000)
SOURCE = GroupPlan(CacheGroup("source"), 50)

DEMAND = Demand(
    max_num_seqs=4, max_num_batched_tokens=32, decode_steps=4, page_size=8, max_pages=20, prefixes=True, bounded=False
)
BARE = dataclasses.replace(DEMAND, prefixes=False, bounded=True)


def pages(groups) -> list[int]:
    return [group.num_pages for group in groups]


def test_whole_contexts_take_all_there_is():
    assert pages(divide([FULL], DEMAND, 100_050, rounded=False)) == [1000]
    assert pages(divide([FULL], DEMAND, 100_050, rounded=True)) == [960]


def test_whole_contexts_take_no_more_than_can_be_used_where_nothing_is_kept():
    assert pages(divide([FULL], BARE, 10**9, rounded=False)) == [4 * 20 + 1]


def test_windows_take_what_can_be_used_and_whole_contexts_the_rest():
    # A window and four steps behind it lie in 4 pages at most; with a chunk of 4 pages and the sink: 4 * 4 + 5.
    assert BARE.most(WINDOW.group) == 21
    # Twice the windows where they are kept for prefixes.
    assert DEMAND.most(WINDOW.group) == 37
    divided = divide([FULL, WINDOW], DEMAND, 37 * 400 + 1000 * 100, rounded=False)
    assert pages(divided) == [1000, 37]
    assert sum(group.bytes for group in divided) == 37 * 400 + 1000 * 100


def test_windows_have_no_more_pages_than_whole_contexts():
    assert pages(divide([FULL, WINDOW], DEMAND, 30 * 500 + 99, rounded=False)) == [30, 30]


def test_a_window_longer_than_the_context_is_the_context():
    long = GroupPlan(CacheGroup("tokens", window=1 << 20), 1)
    assert BARE.most(long.group) == 4 * 20 + 1
    assert BARE.least(long.group) == 20
    assert BARE.least(WINDOW.group) == 3


def test_sources_share_with_whole_contexts_up_to_what_can_be_used():
    assert pages(divide([FULL, SOURCE], DEMAND, 150 * 40, rounded=False)) == [40, 40]
    assert pages(divide([FULL, SOURCE], DEMAND, 81 * 50 + 500 * 100, rounded=False)) == [500, 81]


def test_states_come_first():
    """A live one each, the sink, and as many snapshots within a quarter of what is left."""
    assert pages(divide([FULL, STATE], DEMAND, 100_000, rounded=False)) == [910, 9]
    assert pages(divide([FULL, STATE], DEMAND, 5000 + 8000, rounded=False)) == [60, 7]  # two of eight
    assert pages(divide([STATE], DEMAND, 8000, rounded=False)) == [7]  # alone: three would do, in powers of two
    assert pages(divide([STATE], DEMAND, 10**6, rounded=False)) == [9]
    assert pages(divide([STATE], BARE, 10**6, rounded=False)) == [6]


def test_states_that_do_not_fit_name_the_batch_that_would():
    with pytest.raises(ConfigError, match=r"max_num_seqs=4: .*1,000 bytes each, .* the 4,999 bytes .* lower it to 2"):
        divide([STATE], DEMAND, 4999, rounded=False)
    fewer = dataclasses.replace(DEMAND, max_num_seqs=2)
    assert pages(divide([STATE], fewer, 4999, rounded=False)) == [4]


def test_a_number_of_pages_that_was_asked_for():
    assert pages(exactly([FULL, WINDOW, SOURCE, STATE], DEMAND, 500)) == [500, 37, 500, 9]
    assert pages(exactly([FULL, WINDOW], BARE, 15)) == [15, 15]
