import pytest

from jaxllm.cache import PagePool


def test_taken_pages_are_gone_until_they_are_released():
    pool = PagePool(8)
    pages = pool.take(3)
    assert pool.free == 5
    pool.release(pages)
    assert pool.free == 8


def test_every_page_is_handed_out_once_and_never_the_sink():
    pool = PagePool(5)
    assert sorted(pool.take(2) + pool.take(3)) == [1, 2, 3, 4, 5]
    assert pool.free == 0


def test_a_shared_page_is_free_when_its_last_holder_lets_go():
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.share([page])
    pool.release([page])
    assert (pool.free, pool.holders(page)) == (1, 1)
    pool.release([page])
    assert (pool.free, pool.holders(page)) == (2, 0)


def test_a_kept_page_goes_idle_and_can_be_shared_again():
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.keep(page)
    pool.release([page])
    assert (pool.free, pool.idle) == (2, 1)
    pool.share([page])
    assert (pool.free, pool.idle, pool.holders(page)) == (1, 0, 1)


def test_idle_pages_are_evicted_last_and_oldest_first():
    evicted: list[int] = []
    pool = PagePool(4, on_evict=evicted.append)
    first, second, third = pool.take(3)
    for page in (first, second, third):
        pool.keep(page)
    for page in (second, first, third):
        pool.release([page])
    pool.take(1)
    assert evicted == []  # one page was empty
    pool.take(2)
    assert evicted == [second, first]


def test_the_end_of_a_chain_is_evicted_before_its_start():
    evicted: list[int] = []
    pool = PagePool(3, on_evict=evicted.append)
    chain = pool.take(3)
    for page in chain:
        pool.keep(page)
    pool.release(chain)
    pool.take(2)
    assert evicted == [chain[2], chain[1]]


def test_sharing_an_idle_page_saves_it_from_eviction():
    evicted: list[int] = []
    pool = PagePool(2, on_evict=evicted.append)
    old, new = pool.take(2)
    pool.keep(old)
    pool.keep(new)
    pool.release([old])
    pool.release([new])
    pool.share([old])
    pool.take(1)
    assert evicted == [new]


def test_an_evicted_page_is_kept_no_more():
    pool = PagePool(1)
    (page,) = pool.take(1)
    pool.keep(page)
    pool.release([page])
    assert pool.take(1) == [page]
    pool.release([page])
    assert (pool.free, pool.idle) == (1, 0)


def test_forget_empties_idle_pages_and_lets_held_ones_become_empty():
    evicted: list[int] = []
    pool = PagePool(3, on_evict=evicted.append)
    idle, held = pool.take(2)
    pool.keep(idle)
    pool.keep(held)
    pool.release([idle])
    assert pool.forget() == 1
    pool.release([held])
    assert (pool.free, pool.idle, evicted) == (3, 0, [])
    assert len(set(pool.take(3))) == 3


@pytest.mark.parametrize(
    "misuse",
    [
        lambda pool, page: pool.take(2),
        lambda pool, page: pool.release([page, page]),
        lambda pool, page: pool.share([page + 1]),
        lambda pool, page: pool.keep(page + 1),
    ],
)
def test_misuse_is_caught(misuse):
    pool = PagePool(2)
    (page,) = pool.take(1)
    with pytest.raises(AssertionError):
        misuse(pool, page)
