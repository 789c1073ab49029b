"""Where recurrent states stand, and which of them serves a prefix."""

import pytest

from jaxllm.cache.snapshots import SnapshotIndex


def test_the_longest_snapshot_that_the_tokens_begin_with_is_found():
    index = SnapshotIndex()
    assert index.longest(b"p", [1, 2, 3]) == (0, 0)
    assert index.add(4, b"p", [1, 2])
    assert index.add(5, b"p", [1])
    assert index.add(6, b"p", [1, 9, 9])
    assert index.add(7, b"q", [1, 2, 3])
    assert index.longest(b"p", [1, 2, 3]) == (4, 2)
    assert index.longest(b"p", [1, 9, 3]) == (5, 1)
    assert index.longest(b"p", [1, 9, 9]) == (6, 3)
    assert index.longest(b"p", [2]) == (0, 0)
    assert len(index) == 4


def test_a_snapshot_at_a_pages_end_has_no_tokens_behind_it():
    index = SnapshotIndex()
    assert not index.any_behind(b"p")
    assert index.add(3, b"p", [])
    assert index.any_behind(b"p")
    assert index.longest(b"p", []) == (3, 0)
    assert index.longest(b"p", [7]) == (3, 0)


def test_one_place_has_one_snapshot():
    index = SnapshotIndex()
    assert index.add(3, b"p", [1])
    assert not index.add(4, b"p", [1])
    with pytest.raises(AssertionError, match="entry 3 is indexed already"):
        index.add(3, b"p", [2])


def test_what_is_removed_is_not_found():
    index = SnapshotIndex()
    index.add(3, b"p", [1])
    index.add(4, b"p", [2])
    index.remove(3)
    assert index.longest(b"p", [1]) == (0, 0)
    assert index.any_behind(b"p")
    index.remove(4)
    assert not index.any_behind(b"p")
    assert index.add(3, b"p", [1])
    index.clear()
    assert (len(index), index.longest(b"p", [1])) == (0, (0, 0))
