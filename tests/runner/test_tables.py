"""Block tables of groups: what an extend step sends becomes whole tables on the device."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import CacheGroup
from jaxllm.core import Request, Row, SamplingParams
from jaxllm.runner.packing import DecodeLayout, ExtendLayout
from jaxllm.runner.state import NUM_PARAMS
from jaxllm.runner.tables import BlockTables

GROUPS = (CacheGroup("tokens"), CacheGroup("tokens", window=6), CacheGroup("source"), CacheGroup("state"))
TABLES = BlockTables(GROUPS, page_size=4, max_pages=32)


def row(slot: int, start: int, count: int, *tables: list[int], new_pages=()) -> Row:
    request = Request(f"r{slot}", [1] * (start + count), SamplingParams(), (), 128, seed=0)
    return Row(request, slot, start, count, [1] * count, False, True, list(tables), list(new_pages))


def test_a_windows_table_is_sent_from_the_first_page_in_sight():
    rows = [
        row(2, 40, 7, list(range(1, 13)), [0] * 8 + [21, 22, 23, 24], [5], [3]),  # 40 sees 35, in the ninth page
        row(0, 0, 3, [31], [32], [33, 34], [4]),
    ]
    layout = ExtendLayout(3, TABLES, tokens=16, scored=False)
    # With 16 tokens, and 5 before them, in pages of 4: 7 pages at most, and the number of the first.
    assert TABLES.sent(16) == (32, 8, 32, 1)
    assert layout.size == 3 * (4 + NUM_PARAMS + 32 + 8 + 32 + 1) + 16
    packed = layout.pack(rows, np.zeros((4, NUM_PARAMS), np.int32), sink=3)
    expanded = np.asarray(TABLES.expand(layout.split(jnp.asarray(packed))[2], 16))
    assert expanded.shape == (3, TABLES.width)
    for got, sent in zip(expanded, [*(r.tables for r in rows), [[], [], [], []]], strict=True):
        parts = TABLES.split(got[None])
        assert [part.shape[1] for part in parts] == [32, 32, 32, 1]
        for part, table in zip(parts, sent, strict=True):
            np.testing.assert_array_equal(part[0], table + [0] * (part.shape[1] - len(table)))


def test_pages_behind_the_window_are_not_sent_though_the_table_has_them():
    sent = [np.zeros((1, width), np.int32) for width in TABLES.sent(16)]
    TABLES.write(sent, [row(0, 40, 1, [1], list(range(1, 12)), [], [1])], 16)
    np.testing.assert_array_equal(sent[1][0], [8, 9, 10, 11, 0, 0, 0, 0])


@pytest.mark.parametrize("tokens", [64, 4096])
def test_a_step_that_may_fill_the_context_sends_whole_tables(tokens):
    tables = BlockTables(GROUPS, page_size=4, max_pages=16)
    assert tables.sent(tokens) == (16, 16, 16, 1)
    part = [jnp.asarray(np.random.default_rng(0).integers(0, 99, (2, n)), jnp.int32) for n in tables.sent(tokens)]
    np.testing.assert_array_equal(tables.expand(part, tokens), jnp.concatenate(part, axis=1))


def test_a_decode_row_names_one_page_of_each_group_that_grows():
    layout = DecodeLayout(3, TABLES)
    rows = [
        row(1, 4, 1, [1, 9], [2, 8], [5], [3], new_pages=[(0, 1, 9), (1, 1, 8)]),
        row(2, 5, 1, [4, 6], [5, 7], [1], [2]),
    ]
    slot, columns, pages = layout.split(layout.pack(rows, sink=3))
    np.testing.assert_array_equal(slot, [1, 2, 3])
    nowhere = TABLES.width
    np.testing.assert_array_equal(columns, [[1, nowhere, nowhere], [32 + 1, nowhere, nowhere]])
    np.testing.assert_array_equal(pages[:, 0], [9, 8])


def test_a_model_of_states_alone_sends_slots_and_entries():
    tables = BlockTables((CacheGroup("state"),), page_size=64, max_pages=2048)
    assert (tables.width, tables.sent(8192), DecodeLayout(5, tables).size) == (1, (1,), 5)
