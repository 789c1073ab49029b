"""Runs a model over a paged cache as the runner does, in plain form: for tests of models and layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.core import CacheSpec, CrossKV, LatentKV, PagedKV, RecurrentState, all_specs
from jaxllm.layers.cache import Cache, CrossCache, PagedCache, StateCache
from jaxllm.layers.step import DenseStep, EncodeStep, Step

PAGE = 8


class Program:
    """A model's forward pass, compiled once per shape of its step. Logits for every token."""

    def __init__(self, model: Any):
        graphdef, state = nnx.split(model)
        self._state = state

        def forward(state: Any, step: Any, cache: Any, **sources: Any) -> Any:
            model = nnx.merge(graphdef, state)
            hidden, cache = model(step, cache, **sources)
            return model.logits(hidden), cache

        def encode(state: Any, step: Any, cache: Any) -> Any:
            model = nnx.merge(graphdef, state)
            return model.read(model.encode(step), cache)

        options = {"xla_backend_optimization_level": 0}  # compiling is most of these tests' time
        self._paged = jax.jit(forward, donate_argnums=2, compiler_options=options)
        self._dense = jax.jit(forward, compiler_options=options)
        self._encode = jax.jit(encode, donate_argnums=2, compiler_options=options)
        self.cache_specs = model.cache_specs()
        self.recurrent = any(isinstance(spec, RecurrentState) for spec in all_specs(self.cache_specs))
        self.dtype = jax.tree.leaves(state)[0].dtype

    def dense(self, sequences: list[np.ndarray], sources: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Logits [length, V] of each sequence, all in one rectangle padded at its right. sources: an encoder's."""
        tokens = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = sequence
        read = {} if sources is None else {"sources": encode_step(dict(enumerate(sources)), len(sources))}
        logits, cache = self._dense(self._state, DenseStep.of(jnp.asarray(tokens)), None, **read)
        assert cache is None
        logits = np.asarray(logits).reshape(*tokens.shape, -1)
        return [row[: len(sequence)] for row, sequence in zip(logits, sequences, strict=True)]

    def paged(self, step: Step, cache: Any) -> Any:
        return self._paged(self._state, step, cache)

    def encode(self, step: EncodeStep, cache: Any) -> Any:
        """The cache with the sources that an encoder-decoder's encoder read."""
        return self._encode(self._state, step, cache)


def encode_step(sources: dict[int, np.ndarray], rows: int, tokens_in_step: int = 48) -> EncodeStep:
    """Sources in the order given, then padding."""
    tokens, counts = np.zeros(tokens_in_step, np.int32), np.zeros(rows, np.int32)
    together = np.concatenate(list(sources.values()))
    tokens[: len(together)] = together
    counts[: len(sources)] = [len(source) for source in sources.values()]
    return EncodeStep.of(jnp.asarray(tokens), jnp.asarray(counts))


class Sequences:
    """Sequences that grow over shuffled pages and states. What no token wrote is NaN, so that reading it shows."""

    def __init__(self, program: Program, rows: int = 4, pages_per_row: int = 4):
        self.program = program
        self.rows = rows
        num_pages = 1 + rows * pages_per_row
        order = np.random.default_rng(7).permutation(np.arange(1, num_pages)).astype(np.int32)
        self.table = order.reshape(rows, pages_per_row)
        self.entry = np.arange(1, rows + 1, dtype=np.int32)[::-1]  # of each row's states
        self.length = [0] * rows
        self.source_length = np.zeros(rows, np.int32)
        nowhere = np.zeros(1, np.int32)
        self.cache = tuple(
            tuple(self._empty(spec, nowhere, num_pages) for spec in layer)
            if isinstance(layer, tuple)
            else self._empty(layer, nowhere, num_pages)
            for layer in program.cache_specs
        )

    def encode(self, sources: dict[int, np.ndarray]) -> None:
        """Has an encoder read sources for rows to look at; in pages of the rows' own numbers, in pools of their own."""
        step = encode_step(sources, self.rows)
        write_index, at = np.zeros(step.tokens.shape, np.int32), 0
        for row, source in sources.items():
            place = np.arange(len(source))
            write_index[at : at + len(source)] = self.table[row, place // PAGE] * PAGE + place % PAGE
            self.source_length[row] = len(source)
            at += len(source)
        self._each(
            lambda cache: (
                replace(cache, write_index=jnp.asarray(write_index)) if isinstance(cache, CrossCache) else cache
            )
        )
        self.cache = self.program.encode(step, self.cache)

    def extend(self, new: dict[int, Any], tokens_in_step: int = 24, tail: bool = False) -> dict[int, np.ndarray]:
        """Appends new[row] to its row, all in one ragged step, in the order given. Logits [len(new[row]), V] each; with
        a tail [V], behind the last token."""
        tokens = np.zeros(tokens_in_step, np.int32)
        positions, write_index = np.zeros_like(tokens), np.zeros_like(tokens)
        table, entry, order = np.zeros_like(self.table), np.zeros_like(self.entry), np.full(self.rows, -1)
        query_start, kv_len = np.zeros(self.rows + 1, np.int32), np.zeros(self.rows, np.int32)
        at = 0
        for place, (row, ids) in enumerate(new.items()):
            here = slice(at, at + len(ids))
            position = np.arange(self.length[row], self.length[row] + len(ids))
            tokens[here], positions[here] = ids, position
            write_index[here] = self.table[row, position // PAGE] * PAGE + position % PAGE
            self.length[row] += len(ids)
            used = -(-self.length[row] // PAGE)
            table[place, :used] = self.table[row, :used]
            entry[place], order[place] = self.entry[row], row
            at += len(ids)
            query_start[place + 1 :] = at
            kv_len[place] = self.length[row]
        step = Step(*map(jnp.asarray, (tokens, positions, query_start, kv_len)), tail=tail)
        logits = self._run(step, write_index, table, entry, order)
        if tail:
            return {row: logits[i] for i, row in enumerate(new)}
        return {row: logits[query_start[i] : query_start[i + 1]] for i, row in enumerate(new)}

    def decode(self, new: dict[int, int]) -> dict[int, np.ndarray]:
        """Appends one token to each row of `new`; the other rows are padding. Logits [V] each."""
        tokens, positions, write_index, kv_len = (np.zeros(self.rows, np.int32) for _ in range(4))
        table, entry, order = np.zeros_like(self.table), np.zeros_like(self.entry), np.full(self.rows, -1)
        for row, token in new.items():
            position = self.length[row]
            tokens[row], positions[row] = token, position
            write_index[row] = self.table[row, position // PAGE] * PAGE + position % PAGE
            self.length[row] += 1
            kv_len[row] = self.length[row]
            used = -(-self.length[row] // PAGE)
            table[row, :used] = self.table[row, :used]
            entry[row], order[row] = self.entry[row], row
        query_start = np.arange(self.rows + 1, dtype=np.int32)
        step = Step(*map(jnp.asarray, (tokens, positions, query_start, kv_len)), decode=True)
        logits = self._run(step, write_index, table, entry, order)
        return {row: logits[row] for row in new}

    def preempt(self) -> None:
        """Every row loses its pages and states to its neighbour, what is in them included, and has nothing computed."""
        self.table, self.entry = np.roll(self.table, 1, axis=0), np.roll(self.entry, 1)
        self.length = [0] * self.rows

    def share(self, source: int, target: int, tokens: int) -> None:
        """An empty row begins with another's first tokens: full pages are the same, the last is copied, and so are
        states, which serve the place where they stand alone."""
        assert self.length[target] == 0 < tokens <= self.length[source]
        full = tokens // PAGE
        self.table[target, :full] = self.table[source, :full]
        if tokens % PAGE:
            self._copy(PagedCache, int(self.table[source, full]), int(self.table[target, full]))
        if self.program.recurrent:
            assert tokens == self.length[source]
            self._copy(StateCache, int(self.entry[source]), int(self.entry[target]))
        self.length[target] = tokens

    def _empty(self, spec: CacheSpec, nowhere: np.ndarray, num_pages: int) -> Cache:
        dtype = self.program.dtype
        if isinstance(spec, RecurrentState):
            shapes = [((self.rows + 1, *shape), jnp.dtype(name or dtype)) for shape, name in spec.arrays]
            return StateCache(tuple(jnp.full(shape, jnp.nan, dtype) for shape, dtype in shapes), nowhere)
        assert isinstance(spec, PagedKV | LatentKV | CrossKV)
        pools = tuple(jnp.full((num_pages, PAGE, *shape), jnp.nan, dtype) for shape in spec.pools())
        return CrossCache(pools, nowhere, nowhere) if isinstance(spec, CrossKV) else PagedCache(pools, nowhere, nowhere)

    def _each(self, change: Callable[[Any], Any]) -> None:
        self.cache = jax.tree.map(change, self.cache, is_leaf=lambda x: isinstance(x, Cache))

    def _copy(self, kind: type, source: int, target: int) -> None:
        """From page to page, or from entry to entry, of every cache of this kind."""

        def copy(cache: Cache) -> Cache:
            if not isinstance(cache, kind):
                return cache
            return replace(cache, pools=tuple(pool.at[target].set(pool[source]) for pool in cache.pools))

        self._each(copy)

    def _run(
        self, step: Step, write_index: np.ndarray, table: np.ndarray, entry: np.ndarray, order: np.ndarray
    ) -> np.ndarray:
        """order: the row at each place of the step, -1 for none."""
        source_length = np.where(order >= 0, self.source_length[order], 0)
        used = np.arange(self.table.shape[1]) < -(-source_length[:, None] // PAGE)
        source_table = np.where(used, self.table[order], 0)

        def place(cache: Cache) -> Cache:
            if isinstance(cache, CrossCache):
                return CrossCache(cache.pools, jnp.asarray(source_table), jnp.asarray(source_length))
            if isinstance(cache, StateCache):
                return replace(cache, index=jnp.asarray(entry))
            return replace(cache, page_table=jnp.asarray(table), write_index=jnp.asarray(write_index))

        self._each(place)
        logits, self.cache = self.program.paged(step, self.cache)
        return np.asarray(logits)


def draw_greedily(draw: Callable[[dict[int, int]], dict[int, np.ndarray]], last: dict[int, np.ndarray], count: int):
    """Continues each row from the logits of its last token; returns the ids by row."""
    drawn: dict[int, list[int]] = {row: [] for row in last}
    for left in range(count, 0, -1):
        for row, logits in last.items():
            drawn[row].append(int(logits.argmax()))
        if left > 1:
            last = draw({row: ids[-1] for row, ids in drawn.items()})
    return drawn
