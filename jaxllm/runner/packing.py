"""The one int32 array a program takes and the one it yields: how plans are written and outputs read. Host only."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxllm.core import Logprobs, PageCopy, Request, Row, RowOutput
from jaxllm.runner.state import NUM_PARAMS
from jaxllm.runner.tables import BlockTables

COPIES = 16
"""Copies of the largest copy program."""


def turned[A: (np.ndarray, jax.Array)](packed: A) -> A:
    """Every bit the other way round: as a packed array travels, and what a program makes of it first.

    Kernels would read slices of a parameter where it lies, which is elsewhere in every call, and all of a command
    buffer that names it would be recorded anew each time. This way they read a temporary of the program's own.
    """
    return ~packed


class RowFlag(enum.IntFlag):
    FRESH = 1  # the slot holds another request's state
    DRAWS = 2
    ON_DEVICE = 4  # the row's one token is the slot's last


@dataclass(frozen=True)
class ExtendLayout:
    """An extend program's packed array: [R, 4] slot, start, count, flags; [R, NUM_PARAMS]; of each cache group the
    tables [R, sent]; [T] ids; and, if scored, [T] the token that follows each. Works on numpy arrays (views) and
    traced ones alike."""

    rows: int
    tables: BlockTables
    tokens: int
    scored: bool

    @property
    def size(self) -> int:
        return self.rows * sum(self._widths) + self.tokens * (1 + self.scored)

    @property
    def _widths(self) -> tuple[int, ...]:
        return 4, NUM_PARAMS, *self.tables.sent(self.tokens)

    def split(self, packed: Any) -> tuple[Any, Any, Any, Any, Any]:
        """head, params, tables by group, ids, targets (empty unless scored)."""
        parts, at = [], 0
        for width in self._widths:
            parts.append(packed[at : at + self.rows * width].reshape(self.rows, width))
            at += self.rows * width
        return parts[0], parts[1], parts[2:], packed[at : at + self.tokens], packed[at + self.tokens :]

    def pack(self, rows: list[Row], params: np.ndarray, sink: int) -> np.ndarray:
        """rows of a plan; params: [S + 1, NUM_PARAMS] int32 by slot."""
        packed = np.zeros(self.size, np.int32)
        head, row_params, tables, ids, targets = self.split(packed)
        n = len(rows)
        head[:n] = [(row.slot, row.start, row.count, row.fresh + 2 * row.draws + 4 * (not row.tokens)) for row in rows]
        head[n:, 0] = sink
        row_params[:n] = params[head[:n, 0]]
        self.tables.write(tables, rows, self.tokens)
        at = 0
        for row in rows:
            if row.tokens:
                ids[at : at + row.count] = row.tokens
                if self.scored:
                    following = row.request.token_ids(row.start + 1, row.start + 1 + row.count)
                    targets[at : at + len(following)] = following
            at += row.count
        return packed


@dataclass(frozen=True)
class EncodeLayout:
    """An encode program's packed array: [R] tokens of each source; [R, MP] its pages; [T] ids."""

    rows: int
    tables: BlockTables
    tokens: int

    @property
    def size(self) -> int:
        return self.rows * (1 + self.tables.max_pages) + self.tokens

    def split(self, packed: Any) -> tuple[Any, Any, Any]:
        """count, table, ids."""
        count, rest = packed[: self.rows], packed[self.rows :]
        pages = self.rows * self.tables.max_pages
        return count, rest[:pages].reshape(self.rows, self.tables.max_pages), rest[pages:]

    def pack(self, rows: Sequence[Row]) -> np.ndarray:
        packed = np.zeros(self.size, np.int32)
        count, table, ids = self.split(packed)
        count[: len(rows)] = [len(row.request.source) for row in rows]
        for i, row in enumerate(rows):
            pages = row.tables[self.tables.source]
            table[i, : len(pages)] = pages
        ids[: count.sum()] = [token for row in rows for token in row.request.source]
        return packed


@dataclass(frozen=True)
class DecodeLayout:
    """A decode program's packed array: [B] slot; of each group that grows [B] the column of its new page in the slot's
    row of tables, and [B] the page. A column behind the last adds none."""

    rows: int
    tables: BlockTables

    @property
    def size(self) -> int:
        return self.rows * (1 + 2 * len(self.tables.growing))

    def split(self, packed: Any) -> tuple[Any, Any, Any]:
        """slot [B], columns [G, B], pages [G, B]."""
        parts = packed.reshape(-1, self.rows)
        groups = len(self.tables.growing)
        return parts[0], parts[1 : 1 + groups], parts[1 + groups :]

    def pack(self, rows: list[Row], sink: int) -> np.ndarray:
        packed = np.zeros(self.size, np.int32)
        slot, columns, pages = self.split(packed)
        slot[:] = sink
        slot[: len(rows)] = [row.slot for row in rows]
        columns[:] = self.tables.width
        for i, row in enumerate(rows):
            for group, index, page in row.new_pages:  # groups that grow come first, so that places agree
                columns[group, i], pages[group, i] = self.tables.column(group, index), page
        return packed


def pack_copies(copies: Sequence[PageCopy], size: int) -> np.ndarray:
    """At most `size` copies (group, source, target), flattened; the rest is the sink of the first onto itself."""
    packed = np.zeros((size, 3), np.int32)
    packed[: len(copies)] = copies
    return packed.ravel()


@dataclass(frozen=True)
class SeedLayout:
    """A seed program's packed array: slot, clear, number of ids; [A] arguments of the logits processors; [N] ids, an
    output token t as -1 - t."""

    arguments: int
    tokens: int

    @property
    def size(self) -> int:
        return 3 + self.arguments + self.tokens

    def split(self, packed: Any) -> tuple[Any, Any, Any]:
        """head, arguments, ids."""
        return packed[:3], packed[3 : 3 + self.arguments], packed[3 + self.arguments :]

    def pack(self, request: Request, slot: int, arguments: np.ndarray, prompt: bool) -> list[np.ndarray]:
        """One array per call that gives a slot its arguments and brings its states up to what is known of a request.

        prompt: its prompt counts, too.
        """
        output = -1 - np.asarray(request.output, np.int32)
        ids = np.concatenate([np.asarray(request.prompt if prompt else [], np.int32), output])
        calls = []
        for at in range(0, max(1, len(ids)), self.tokens):
            packed = np.zeros(self.size, np.int32)
            head, own, own_ids = self.split(packed)
            part = ids[at : at + self.tokens]
            head[:] = slot, at == 0, len(part)
            own[:] = arguments
            own_ids[: len(part)] = part
            calls.append(packed)
        return calls


class _Reader:
    """Takes arrays off the front of a packed output."""

    def __init__(self, packed: np.ndarray):
        self._rest = packed

    def take(self, *shape: int, dtype: type = np.int32) -> np.ndarray:
        size = int(np.prod(shape))
        part, self._rest = self._rest[:size], self._rest[size:]
        return part.view(dtype).reshape(shape)

    def logprobs(self, *shape: int, n: int) -> Logprobs:
        return Logprobs(
            token=self.take(*shape, dtype=np.float32),
            rank=self.take(*shape),
            top_ids=self.take(*shape, n),
            top=self.take(*shape, n, dtype=np.float32),
        )


def read_decode(
    packed: np.ndarray, rows: list[Row], size: int, steps: int, num_logprobs: int | None
) -> list[RowOutput]:
    """Outputs of a decode program. num_logprobs: None if the program reports none."""
    reader = _Reader(packed)
    tokens = reader.take(steps, size).T[: len(rows)].tolist()
    counts = reader.take(size).tolist()
    outputs = [RowOutput(drawn[:count]) for drawn, count in zip(tokens, counts, strict=False)]
    if num_logprobs is not None:
        logprobs = reader.logprobs(steps, size, n=num_logprobs)
        for i, row in enumerate(rows):
            top = row.request.params.logprobs
            if top is not None:
                outputs[i].logprobs = _select(logprobs, (slice(counts[i]), i), top)
    return outputs


def read_extend(packed: np.ndarray, rows: list[Row], size: int, num_logprobs: int | None) -> list[RowOutput]:
    """Outputs of a draw of `size` rows, at most one token for each. num_logprobs: None if it reports none."""
    reader = _Reader(packed)
    tokens, drawn = reader.take(size).tolist(), reader.take(size).tolist()
    outputs = [RowOutput([tokens[i]] if drawn[i] else []) for i in range(len(rows))]
    if num_logprobs is not None:
        logprobs = reader.logprobs(size, n=num_logprobs)
        for i, row in enumerate(rows):
            top = row.request.params.logprobs
            if top is not None and drawn[i]:
                outputs[i].logprobs = _select(logprobs, slice(i, i + 1), top)
    return outputs


def read_scores(packed: np.ndarray, rows: list[Row], outputs: list[RowOutput], tokens: int, num_logprobs: int) -> None:
    """Adds to the outputs of rows the prompt log probabilities of an extend program of `tokens` tokens.

    They cover the row's positions start + 1 to start + count that lie within the prompt.
    """
    scores = _Reader(packed).logprobs(tokens, n=num_logprobs)
    at = 0
    for row, output in zip(rows, outputs, strict=True):
        count = min(row.start + row.count, len(row.request.prompt) - 1) - row.start
        top = row.request.params.prompt_logprobs
        if top is not None and count > 0:
            output.prompt_logprobs = _select(scores, slice(at, at + count), top)
        at += row.count


def _select(logprobs: Logprobs, index: Any, top: int) -> Logprobs:
    """Copies, so that a few numbers do not keep a step's whole output alive."""
    return Logprobs(
        token=logprobs.token[index].copy(),
        rank=logprobs.rank[index].copy(),
        top_ids=logprobs.top_ids[index][..., :top].copy(),
        top=logprobs.top[index][..., :top].copy(),
    )
