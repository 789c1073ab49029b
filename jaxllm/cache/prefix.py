"""Which page holds the keys and values of which tokens, after which tokens: the prefix cache's index.

A page's key is a cryptographic hash of its own tokens and its parent's key, so it stands for the whole prefix
up to the page's end: equal keys are equal prefixes, under the same salt. A request finds its longest chain of
full pages by looking its own keys up one after the other. Behind the end of that chain, `partial` finds the
page that agrees with the most of the tokens that follow; its owner copies that page (copy-on-write).

Pages that are not full (the last one of a request that ended) have no key, as nothing can follow them, but
`partial` finds them too.
"""

import struct
from bisect import bisect_left, insort
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

_TOKEN_BYTES = 4


class _Entry(NamedTuple):
    parent: bytes
    tokens: bytes
    key: bytes | None  # None: the page is not full


class PrefixIndex:
    """Maps prefixes to pages. It counts nothing and frees nothing: that is the pool's part."""

    def __init__(self, page_size: int):
        self._page_size = page_size
        self._entries: dict[int, _Entry] = {}
        self._page_of: dict[bytes, int] = {}
        # Children of each prefix, sorted by their tokens: of a sorted list of strings, one of the two
        # neighbours of a new string's place shares the most with it.
        self._children: dict[bytes, list[tuple[bytes, int]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, page: int) -> bool:
        return page in self._entries

    @staticmethod
    def root(salt: str) -> bytes:
        """The key of the empty prefix. `person` keeps a salt from posing as some page's content."""
        return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=32, person=b"root").digest()

    @staticmethod
    def key(parent: bytes, tokens: Sequence[int]) -> bytes:
        """The key of the full page that holds `tokens` behind the prefix `parent`."""
        return blake2b(parent + _pack(tokens), digest_size=32).digest()

    def page(self, key: bytes) -> int | None:
        return self._page_of.get(key)

    def partial(self, parent: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The page behind `parent` that begins with the most of `tokens`, and how many it shares: (0, 0) if none."""
        children = self._children.get(parent)
        best = (0, 0)
        if not children or not tokens:
            return best
        wanted = _pack(tokens)
        place = bisect_left(children, (wanted,))
        for packed, page in children[max(0, place - 1) : place + 1]:
            shared = _shared_tokens(packed, wanted)
            if shared > best[1]:
                best = (page, shared)
        return best

    def add(self, page: int, parent: bytes, tokens: Sequence[int], key: bytes | None) -> bool:
        """Tells what `page` holds; False if the index has all of that already in another page.

        key: that of a full page, None for one that is not full.
        """
        assert page not in self._entries, f"page {page} is indexed already"
        packed = _pack(tokens)
        children = self._children.setdefault(parent, [])
        if key is not None:
            assert len(tokens) == self._page_size
            if key in self._page_of:
                return False
            self._page_of[key] = page
        else:
            place = bisect_left(children, (packed,))
            if place < len(children) and children[place][0].startswith(packed):
                return False
        insort(children, (packed, page))
        self._entries[page] = _Entry(parent, packed, key)
        return True

    def remove(self, page: int) -> None:
        """Forgets a page. Those behind it stay: their keys hold should the page be computed anew."""
        entry = self._entries.pop(page)
        if entry.key is not None:
            del self._page_of[entry.key]
        children = self._children[entry.parent]
        del children[bisect_left(children, (entry.tokens, page))]
        if not children:
            del self._children[entry.parent]

    def clear(self) -> None:
        self._entries.clear()
        self._page_of.clear()
        self._children.clear()


def _pack(tokens: Sequence[int]) -> bytes:
    """Big-endian, so that the order of the bytes is the order of the tokens."""
    return struct.pack(f">{len(tokens)}I", *tokens)


def _shared_tokens(a: bytes, b: bytes) -> int:
    """How many tokens two packed sequences share from their start."""
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length // _TOKEN_BYTES
    return next(i for i in range(length) if a[i] != b[i]) // _TOKEN_BYTES
