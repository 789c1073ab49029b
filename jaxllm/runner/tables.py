"""Where the block tables of the cache groups lie: side by side in one row per slot on the device, and in one row per
request of an extend step's packed array.

On the device a table has a place for every page of a context, so that kernels look pages up by position. What an
extend step sends of a group with a window is short: the number of the first page in sight, then the pages from
there to the end of the row's chunk. Of 131,072 positions in pages of 64, with a window of 1,024 and chunks of
8,192, these are 147 numbers a request instead of 2,048.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import CacheGroup
from jaxllm.core import Row


@dataclass(frozen=True)
class BlockTables:
    """groups: those of the model, their num_pages unused; max_pages: of one request's context, and of its source."""

    groups: tuple[CacheGroup, ...]
    page_size: int
    max_pages: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Places of a row on the device, by group."""
        return tuple(1 if group.kind == "state" else self.max_pages for group in self.groups)

    @property
    def width(self) -> int:
        return sum(self.widths)

    @property
    def growing(self) -> tuple[int, ...]:
        """The groups that a decode step may add a page to."""
        return tuple(place for place, group in enumerate(self.groups) if group.kind == "tokens")

    @property
    def source(self) -> int:
        """The group of what an encoder read."""
        return next(place for place, group in enumerate(self.groups) if group.kind == "source")

    def sent(self, tokens: int) -> tuple[int, ...]:
        """Numbers of a row, by group, in the packed array of an extend step of so many tokens."""
        return tuple(
            width if self._whole(group, tokens) else 1 + self._in_sight(group, tokens)
            for group, width in zip(self.groups, self.widths, strict=True)
        )

    def _in_sight(self, group: CacheGroup, tokens: int) -> int:
        """Pages at most that hold a chunk of so many tokens and the window behind its first."""
        assert group.window is not None
        return -(-(group.window - 1 + tokens) // self.page_size) + 1

    def _whole(self, group: CacheGroup, tokens: int) -> bool:
        return group.window is None or self._in_sight(group, tokens) >= self.max_pages

    # --- host ---

    def write(self, sent: Sequence[np.ndarray], rows: Sequence[Row], tokens: int) -> None:
        """Fills what an extend step of `tokens` tokens sends: an array [R, sent] of zeros per group."""
        for place, group in enumerate(self.groups):
            tables = [row.tables[place] for row in rows]
            if self._whole(group, tokens):
                _fill(sent[place], tables)
            else:
                assert group.window is not None
                first = [max(0, row.start - group.window + 1) // self.page_size for row in rows]
                sent[place][: len(rows), 0] = first
                _fill(sent[place][:, 1:], [table[begin:] for table, begin in zip(tables, first, strict=True)])

    def column(self, group: int, index: int) -> int:
        """Of a group's page in a slot's row."""
        return sum(self.widths[:group]) + index

    # --- device ---

    def expand(self, sent: Sequence[jax.Array], tokens: int) -> jax.Array:
        """The rows [R, width] that an extend step of `tokens` tokens sent."""
        parts = []
        for group, part, width in zip(self.groups, sent, self.widths, strict=True):
            if not self._whole(group, tokens):
                index = jnp.arange(width, dtype=jnp.int32)[None, :] - part[:, :1]
                inside = (index >= 0) & (index < part.shape[1] - 1)
                part = jnp.where(inside, jnp.take_along_axis(part, jnp.where(inside, index + 1, 0), axis=1), 0)
            parts.append(part)
        return jnp.concatenate(parts, axis=1) if len(parts) != 1 else parts[0]

    def split(self, rows: Any) -> list[Any]:
        """The tables [R, pages] of each group, from rows [R, width]."""
        ends = np.cumsum((0, *self.widths))
        return [rows[:, begin:end] for begin, end in pairwise(ends)]


def _fill(target: np.ndarray, lists: Sequence[Sequence[int]]) -> None:
    """target[i, : len(lists[i])] = lists[i], for many short lists at once."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    ends = np.cumsum(lengths)
    index = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    target[np.repeat(np.arange(len(lists)), lengths), index] = list(chain.from_iterable(lists))
