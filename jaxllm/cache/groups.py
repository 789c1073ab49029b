"""The pages of one group of layers: which of them a request needs, holds, shares and leaves behind.

Requests hold, per group, a list of pages, their block table (`Request.tables`). A group knows its own place among
them; what is common to all groups, and the order in which things happen, is cache/space.py's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from jaxllm.cache.pages import PagePool
from jaxllm.cache.prefix import PrefixIndex
from jaxllm.cache.snapshots import SnapshotIndex
from jaxllm.config import CacheGroup
from jaxllm.core import Request
from jaxllm.errors import ConfigError


class Keys(Protocol):
    """The prefix index's keys of a request: [n] is that of its first n pages."""

    def __getitem__(self, pages: int, /) -> bytes: ...


class Hit(NamedTuple):
    """What the prefix cache has of a request: so many full pages, and so many tokens behind them.

    matched: full pages that the groups of tokens have, whether or not a state stands behind them.
    sources: by group, the page or entry to copy and go on from; 0 where there is none.
    """

    keys: Sequence[bytes]
    pages: int
    tail: int
    matched: int
    sources: tuple[int, ...]


class TokenPages:
    """Pages of tokens, with a window or without."""

    def __init__(self, group: CacheGroup, place: int, page_size: int):
        self.place = place
        self.window = group.window
        self.index = PrefixIndex(page_size)
        self.pool = _pool(group, self.index.remove)
        self._page_size = page_size
        self._watermark = group.num_pages // 100

    def first_seen(self, position: int) -> int:
        """The first page that the token at `position`, or any behind it, sees something of."""
        return 0 if self.window is None else max(0, position - self.window + 1) // self._page_size

    def least(self, tokens: int) -> int:
        """Pages that a request of `tokens` tokens must be able to hold at once to get on at all."""
        pages = -(-tokens // self._page_size)
        if self.window is None:
            return pages
        # The window of a token that begins a page, or lies anywhere in one: those before it, and its own.
        return min(pages, -(-(self.window - 1) // self._page_size) + 1)

    def reach(self, keys: Keys, pages: int) -> int:
        """The most full pages, at most `pages`, behind which this group has all that a request would see."""
        page = self.index.page
        if self.window is None:
            return next((number for number in range(pages) if page(keys[number + 1]) is None), pages)
        while pages:
            seen = range(self.first_seen(pages * self._page_size), pages)
            missing = next((number for number in reversed(seen) if page(keys[number + 1]) is None), None)
            if missing is None:
                break
            pages = missing
        return pages

    def tail(self, prefix: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The page behind `prefix` that begins with the most of `tokens`, and how many it shares: (0, 0) if none."""
        return self.index.partial(prefix, tokens)

    def _shared(self, hit: Hit) -> list[int]:
        """The pages of a hit that its request will see, by number; 0 for those that it will not."""
        first = min(hit.pages, self.first_seen(hit.pages * self._page_size + hit.tail))
        found = [self.index.page(key) for key in hit.keys[first + 1 : hit.pages + 1]]
        assert None not in found
        return [0] * first + [page for page in found if page is not None]

    def fits(self, request: Request, hit: Hit, reserved: int, alone: bool) -> bool:
        """Whether the pages for all known tokens, or for a window of them, are there beside those kept free."""
        kept_free = reserved if alone else reserved + self._watermark
        shared = [page for page in self._shared(hit) if page]
        source = hit.sources[self.place]
        needed = -(-request.num_known // self._page_size) - hit.pages
        if self.window is not None:
            needed = min(needed, self.least(request.num_known) - len(shared))
        idle = sum(map(self.pool.is_idle, shared)) + self.pool.is_idle(source)
        return self.pool.free - kept_free - idle >= needed

    def admit(self, request: Request, hit: Hit) -> list[int]:
        """A table of the hit's pages, shared, and those to fill: for all known tokens, or, with a window, the one
        that takes the copy, as more come chunk by chunk."""
        table = self._shared(hit)
        self.pool.share([page for page in table if page])
        if self.window is not None:
            return table + self.pool.take(hit.tail > 0)
        return table + self.pool.take(-(-request.num_known // self._page_size) - hit.pages)

    def trim(self, table: list[int], position: int) -> None:
        """Lets go of the pages that no token at `position` or behind it sees. Steps that were submitted still read
        them, and may: whoever takes them next writes in a later step."""
        left = []
        number = min(len(table), self.first_seen(position)) - 1
        while number >= 0 and table[number]:
            left.append(table[number])
            table[number] = 0
            number -= 1
        self.pool.release(left)

    def add(self, page: int, prefix: bytes, tokens: Sequence[int], key: bytes | None) -> None:
        """Tells the index of a held page, which then stays when it is let go; 0 is one that was left behind."""
        if page and self.index.add(page, prefix, tokens, key):
            self.pool.keep(page)

    def release(self, table: list[int]) -> None:
        self.pool.release([page for page in table if page] if self.window is not None else table)


class SourcePages:
    """Pages of what an encoder read, for all of it, from admission to the end. Requests of one source share them, and
    so do those to come while the pages stay; what lies in them depends on the whole source, so they share all or none.
    """

    def __init__(self, group: CacheGroup, place: int, page_size: int):
        self.place = place
        self.pool = _pool(group, self._forget)
        self._page_size = page_size
        self._sources: dict[bytes, list[int]] = {}  # by the key of the empty prefix behind it
        self._keys: dict[int, bytes] = {}  # by page

    def needed(self, request: Request) -> int:
        return -(-len(request.source) // self._page_size)

    def knows(self, request: Request) -> bool:
        """The source was read for another request, and its pages are still there."""
        return request.page_keys[0] in self._sources

    def fits(self, request: Request, hit: Hit, reserved: int, alone: bool) -> bool:
        return self.knows(request) or self.pool.free >= self.needed(request)

    def admit(self, request: Request, hit: Hit) -> list[int]:
        pages = self._sources.get(request.page_keys[0])
        request.source_read = pages is not None
        if pages is None:
            return self.pool.take(self.needed(request))
        self.pool.share(pages)
        return list(pages)

    def add(self, request: Request) -> None:
        """Tells of the source of a request that was just admitted: by the plan in the making the encoder reads it."""
        key, pages = request.page_keys[0], request.tables[self.place]
        if pages and not request.source_read:
            self._sources[key] = list(pages)
            for page in pages:
                self.pool.keep(page)
                self._keys[page] = key

    def release(self, table: list[int]) -> None:
        self.pool.release(table)

    def flush(self) -> int:
        """Forgets every source; returns how many pages held nothing else."""
        self._sources.clear()
        self._keys.clear()
        return self.pool.forget()

    def _forget(self, page: int) -> None:
        if (key := self._keys.get(page)) is not None:
            for one in self._sources.pop(key):
                del self._keys[one]


class States:
    """Entries of recurrent states: a live one per request, and snapshots that the index knows."""

    def __init__(self, group: CacheGroup, place: int, page_size: int):
        self.place = place
        self.index = SnapshotIndex()
        self.pool = _pool(group, self.index.remove)
        self._page_size = page_size

    def reach(self, keys: Keys, pages: int) -> int:
        """The most full pages, at most `pages`, behind which a snapshot stands, in the next page or at its start."""
        while pages and not self.index.any_behind(keys[pages]):
            pages -= 1
        return pages

    def tail(self, prefix: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The snapshot that covers the most of `tokens` behind `prefix`, and how many: (0, 0) if none."""
        return self.index.longest(prefix, tokens)

    def fits(self, request: Request, hit: Hit, reserved: int, alone: bool) -> bool:
        return self.pool.free - self.pool.is_idle(hit.sources[self.place]) >= 1

    def admit(self, request: Request, hit: Hit) -> list[int]:
        return self.pool.take(1)

    def add(self, entry: int, prefix: bytes, tokens: Sequence[int]) -> None:
        """Tells the index of a held entry, which then stays when it is let go."""
        if self.index.add(entry, prefix, tokens):
            self.pool.keep(entry)

    def release(self, table: list[int]) -> None:
        self.pool.release(table)


def _pool(group: CacheGroup, on_evict: Callable[[int], None] | None = None) -> PagePool:
    if group.num_pages < 2:
        raise ConfigError(f"num_pages={group.num_pages}: page 0 is the sink, so there must be 2 or more")
    return PagePool(group.num_pages - 1, on_evict)
