"""Runs a model over a paged cache as the runner does, in plain form: for tests of models and layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.layers.step import DenseStep, Step

PAGE = 8


class Program:
    """A model's forward pass, compiled once per shape of its step. Logits for every token."""

    def __init__(self, model: Any):
        graphdef, state = nnx.split(model)
        self._state = state

        def forward(state: Any, step: Any, cache: Any) -> Any:
            model = nnx.merge(graphdef, state)
            hidden, cache = model(step, cache)
            return model.logits(hidden), cache

        options = {"xla_backend_optimization_level": 0}  # compiling is most of these tests' time
        self._paged = jax.jit(forward, donate_argnums=2, compiler_options=options)
        self._dense = jax.jit(forward, compiler_options=options)
        self.cache_specs = model.cache_specs()
        self.dtype = jax.tree.leaves(state)[0].dtype

    def dense(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Logits [length, V] of each sequence, all in one rectangle padded at its right."""
        tokens = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = sequence
        logits, cache = self._dense(self._state, DenseStep.of(jnp.asarray(tokens)), None)
        assert cache is None
        logits = np.asarray(logits).reshape(*tokens.shape, -1)
        return [row[: len(sequence)] for row, sequence in zip(logits, sequences, strict=True)]

    def paged(self, step: Step, cache: Any) -> Any:
        return self._paged(self._state, step, cache)


class Sequences:
    """Sequences that grow over shuffled pages. What no token wrote is NaN, so that reading it shows."""

    def __init__(self, program: Program, rows: int = 4, pages_per_row: int = 4):
        self.program = program
        self.rows = rows
        num_pages = 1 + rows * pages_per_row
        order = np.random.default_rng(7).permutation(np.arange(1, num_pages)).astype(np.int32)
        self.table = order.reshape(rows, pages_per_row)
        self.length = [0] * rows
        self.cache = tuple(
            tuple(jnp.full((num_pages, PAGE, *shape), jnp.nan, program.dtype) for shape in spec.pools())
            for spec in program.cache_specs
        )

    def extend(self, new: dict[int, Any], tokens_in_step: int = 24) -> dict[int, np.ndarray]:
        """Appends new[row] to its row, all in one ragged step, in the order given. Logits [len(new[row]), V] each."""
        tokens = np.zeros(tokens_in_step, np.int32)
        positions, write_index = np.zeros_like(tokens), np.zeros_like(tokens)
        table = np.zeros_like(self.table)
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
            at += len(ids)
            query_start[place + 1 :] = at
            kv_len[place] = self.length[row]
        logits = self._run(tokens, positions, write_index, table, query_start, kv_len, decode=False)
        return {row: logits[query_start[i] : query_start[i + 1]] for i, row in enumerate(new)}

    def decode(self, new: dict[int, int]) -> dict[int, np.ndarray]:
        """Appends one token to each row of `new`; the other rows are padding. Logits [V] each."""
        tokens, positions, write_index, kv_len = (np.zeros(self.rows, np.int32) for _ in range(4))
        table = np.zeros_like(self.table)
        for row, token in new.items():
            position = self.length[row]
            tokens[row], positions[row] = token, position
            write_index[row] = self.table[row, position // PAGE] * PAGE + position % PAGE
            self.length[row] += 1
            kv_len[row] = self.length[row]
            used = -(-self.length[row] // PAGE)
            table[row, :used] = self.table[row, :used]
        query_start = np.arange(self.rows + 1, dtype=np.int32)
        logits = self._run(tokens, positions, write_index, table, query_start, kv_len, decode=True)
        return {row: logits[row] for row in new}

    def preempt(self) -> None:
        """Every row loses its pages to its neighbour, what is in them included, and has nothing computed."""
        self.table = np.roll(self.table, 1, axis=0)
        self.length = [0] * self.rows

    def share(self, source: int, target: int, tokens: int) -> None:
        """An empty row begins with another's first tokens: full pages are the same, the last is copied."""
        assert self.length[target] == 0 < tokens <= self.length[source]
        full = tokens // PAGE
        self.table[target, :full] = self.table[source, :full]
        if tokens % PAGE:
            old, new = int(self.table[source, full]), int(self.table[target, full])
            self.cache = jax.tree.map(lambda pool: pool.at[new].set(pool[old]), self.cache)
        self.length[target] = tokens

    def _run(self, *fields: np.ndarray, decode: bool) -> np.ndarray:
        step = Step(*(jnp.asarray(field) for field in fields), decode=decode)
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
