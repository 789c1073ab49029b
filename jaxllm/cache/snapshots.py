"""Which entry holds the recurrent state behind which tokens: the prefix cache's index of states.

Pages serve any place in them; a state serves the one place where it stands. A snapshot is found by the key of the
full pages before that place, and the tokens behind them.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


class _Place(NamedTuple):
    prefix: bytes
    tokens: tuple[int, ...]


class SnapshotIndex:
    """Maps prefixes to entries. It counts nothing and frees nothing: that is the pool's part."""

    def __init__(self) -> None:
        self._places: dict[int, _Place] = {}
        self._entries: dict[_Place, int] = {}
        # Behind each prefix, how many snapshots stand how many tokens further on.
        self._lengths: defaultdict[bytes, dict[int, int]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._places)

    def any_behind(self, prefix: bytes) -> bool:
        """Whether a snapshot stands at the end of these pages or in the page behind them."""
        return prefix in self._lengths

    def longest(self, prefix: bytes, tokens: Sequence[int]) -> tuple[int, int]:
        """The entry that covers the most of `tokens` behind `prefix`, and how many: (0, 0) if there is none."""
        for length in sorted(self._lengths.get(prefix, ()), reverse=True):
            if length <= len(tokens):
                entry = self._entries.get(_Place(prefix, tuple(tokens[:length])))
                if entry is not None:
                    return entry, length
        return 0, 0

    def add(self, entry: int, prefix: bytes, tokens: Sequence[int]) -> bool:
        """Tells where the state in `entry` stands; False if the index has another that stands there."""
        assert entry not in self._places, f"entry {entry} is indexed already"
        place = _Place(prefix, tuple(tokens))
        if place in self._entries:
            return False
        self._places[entry], self._entries[place] = place, entry
        lengths = self._lengths[prefix]
        lengths[len(tokens)] = lengths.get(len(tokens), 0) + 1
        return True

    def remove(self, entry: int) -> None:
        place = self._places.pop(entry)
        del self._entries[place]
        lengths = self._lengths[place.prefix]
        lengths[len(place.tokens)] -= 1
        if not lengths[len(place.tokens)]:
            del lengths[len(place.tokens)]
            if not lengths:
                del self._lengths[place.prefix]

    def clear(self) -> None:
        self._places.clear()
        self._entries.clear()
        self._lengths.clear()
