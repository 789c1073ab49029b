from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.cache import PrefixIndex

ROOT = PrefixIndex.root("")


def full(index: PrefixIndex, page: int, tokens: list[int], parent: bytes = ROOT) -> bytes:
    key = index.key(parent, tokens)
    assert index.add(page, parent, tokens, key)
    return key


def test_a_full_page_is_found_by_its_key():
    index = PrefixIndex(4)
    key = full(index, 7, [1, 2, 3, 4])
    assert index.page(key) == 7
    assert index.page(index.key(ROOT, [1, 2, 3, 5])) is None


def test_the_same_tokens_behind_another_prefix_are_another_page():
    index = PrefixIndex(2)
    first = full(index, 1, [1, 2])
    second = full(index, 2, [1, 2], first)
    assert (index.page(first), index.page(second)) == (1, 2)


def test_salts_are_apart():
    a, b = PrefixIndex.root("a"), PrefixIndex.root("b")
    assert a != b
    assert PrefixIndex.key(a, [1]) != PrefixIndex.key(b, [1])


def test_a_salt_cannot_pose_as_a_page():
    # The bytes a page hashes are a digest and its tokens; a salt of the same bytes must be another key.
    parent = bytes(range(32))
    salt = (parent + bytes([0, 0, 0, 65])).decode("ascii")
    assert PrefixIndex.root(salt) != PrefixIndex.key(parent, [65])


def test_a_second_page_of_the_same_content_is_not_indexed():
    index = PrefixIndex(2)
    key = full(index, 1, [5, 6])
    assert not index.add(2, ROOT, [5, 6], key)
    assert index.page(key) == 1
    assert 2 not in index


def test_partial_finds_the_page_that_shares_the_most():
    index = PrefixIndex(4)
    full(index, 1, [1, 2, 3, 4])
    full(index, 2, [1, 2, 9, 9])
    full(index, 3, [2, 2, 2, 2])
    assert index.partial(ROOT, [1, 2, 9, 0]) == (2, 3)
    assert index.partial(ROOT, [1, 2, 3, 4]) == (1, 4)
    assert index.partial(ROOT, [2]) == (3, 1)
    assert index.partial(ROOT, [3, 3]) == (0, 0)
    assert index.partial(ROOT, []) == (0, 0)
    assert index.partial(PrefixIndex.root("other"), [1, 2, 3]) == (0, 0)


def test_a_page_that_is_not_full_is_found_by_partial_alone():
    index = PrefixIndex(4)
    assert index.add(1, ROOT, [1, 2, 3], None)
    assert index.partial(ROOT, [1, 2, 3, 4]) == (1, 3)
    assert index.page(index.key(ROOT, [1, 2, 3])) is None


def test_a_part_of_what_is_indexed_is_not_indexed_again():
    index = PrefixIndex(4)
    full(index, 1, [1, 2, 3, 4])
    assert not index.add(2, ROOT, [1, 2], None)
    assert index.add(3, ROOT, [1, 3], None)
    assert len(index) == 2


def test_removed_pages_are_found_no_more():
    index = PrefixIndex(2)
    key = full(index, 1, [1, 2])
    assert index.add(2, key, [3], None)
    index.remove(1)
    assert index.page(key) is None
    assert index.partial(ROOT, [1, 2]) == (0, 0)
    assert index.partial(key, [3]) == (2, 1)  # holds whenever [1, 2] is computed anew
    index.remove(2)
    assert len(index) == 0
    assert index.partial(key, [3]) == (0, 0)


def test_clear_forgets_everything():
    index = PrefixIndex(2)
    key = full(index, 1, [1, 2])
    index.clear()
    assert (len(index), index.page(key), index.partial(ROOT, [1])) == (0, None, (0, 0))
    full(index, 1, [1, 2])


def _shared(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


pages = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(pages, max_size=12), st.lists(st.integers(0, 11), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_partial_agrees_with_a_search_through_all_pages(contents, removed, wanted):
    index = PrefixIndex(4)
    known = {
        page: tokens
        for page, tokens in enumerate(contents, 1)
        if index.add(page, ROOT, tokens, index.key(ROOT, tokens) if len(tokens) == 4 else None)
    }
    for page in removed:
        if known.pop(page, None) is not None:
            index.remove(page)
    page, count = index.partial(ROOT, wanted)
    assert count == max((_shared(tokens, wanted) for tokens in known.values()), default=0)
    assert page == 0 if count == 0 else _shared(known[page], wanted) == count
