"""The pages of the KV cache: who holds each, which may be taken, which is given up next.

A page is in one of three places. *Held*: its count of holders is positive. *Empty*: nobody holds it and its
content is worthless. *Idle*: nobody holds it, but the prefix index knows its content, so it is given up only
when no empty page is left, the one that was let go longest ago first.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence


class PagePool:
    """`num_pages` pages with the numbers 1 .. num_pages; page 0 is the padding sink and never handed out.

    `on_evict(page)` is called when an idle page is given up, so that the prefix index forgets it.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int], None] | None = None):
        self.num_pages = num_pages
        self._on_evict = on_evict
        self._holders = [0] * (num_pages + 1)
        self._empty = list(range(num_pages, 0, -1))
        self._kept: set[int] = set()  # pages to go idle instead of empty
        # In the order they were let go. The front of a plain dict is found behind all that was ever taken from there.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that `take` can supply: empty and idle ones."""
        return len(self._empty) + len(self._idle)

    @property
    def idle(self) -> int:
        """Pages that nobody holds and the prefix index knows."""
        return len(self._idle)

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def holders(self, page: int) -> int:
        return self._holders[page]

    def take(self, count: int) -> list[int]:
        """Pages for a new holder, evicting idle ones where it must. The caller has checked `free`."""
        assert 0 <= count <= self.free, f"took {count} of {self.free} free pages"
        while len(self._empty) < count:
            page, _ = self._idle.popitem(last=False)
            self._kept.discard(page)
            self._empty.append(page)
            if self._on_evict is not None:
                self._on_evict(page)
        pages = [self._empty.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more holder for each of these held or idle pages."""
        for page in pages:
            assert self._holders[page] or page in self._idle, f"shared page {page}, whose content is lost"
            self._idle.pop(page, None)
            self._holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder fewer for each. The last of `pages` is the first to be evicted later.

        A chain of pages is of use only with all that come before, so its end is to go first.
        """
        for page in reversed(pages):
            assert self._holders[page] > 0, f"released page {page}, which nobody holds"
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._kept:
                    self._idle[page] = None
                else:
                    self._empty.append(page)

    def keep(self, page: int) -> None:
        """The content of this held page is indexed: once let go it stays until it is evicted."""
        assert self._holders[page] > 0, f"kept page {page}, which nobody holds"
        self._kept.add(page)

    def forget(self) -> int:
        """No page's content is indexed any more; returns how many idle pages became empty."""
        count = len(self._idle)
        self._empty.extend(reversed(self._idle))
        self._idle.clear()
        self._kept.clear()
        return count
