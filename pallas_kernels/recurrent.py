"""What the operations with a recurrent state share: ragged rows, each of which owns an entry of the state pools.

Row r's tokens are query_start[r] : query_start[r + 1]; its state is read at entry index[r], taken as zero where
fresh[r], and written back there in place. With decode, T == R, row r is token r and query_start is not read.

Padding tokens stand behind query_start[R]: they yield zeros and touch no state, and what they hold has no influence.
A row without tokens leaves its entry as it is. Rows with tokens have an entry each; where they share one (the sink of
the padding rows of a decode), each yields any result, and one of their states, or a mixture of them, stays there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.schedule import share_tiles


def check_rows(
    operation: str, tokens: int, index: jax.Array, query_start: jax.Array, fresh: jax.Array, decode: bool
) -> None:
    """Raises ValueError where the operands disagree about the rows."""
    rows = index.shape[0]
    if query_start.shape != (rows + 1,) or fresh.shape != (rows,) or (decode and tokens != rows):
        raise ValueError(
            f"{operation}: {tokens} tokens, index {index.shape}, query_start {query_start.shape} and fresh"
            f" {fresh.shape} disagree about the rows"
        )
    if fresh.dtype != jnp.bool_:
        raise ValueError(f"{operation}: fresh is {fresh.dtype} and must be bool")


def row_of_tokens(query_start: jax.Array, tokens: int) -> jax.Array:
    """The row of each token, [T] int32; R for padding tokens."""
    token = jnp.arange(tokens, dtype=jnp.int32)
    return jnp.searchsorted(query_start[1:], token, side="right", method="compare_all").astype(jnp.int32)


def read(states: jax.Array, index: jax.Array, fresh: jax.Array) -> jax.Array:
    """The rows' states, [R, ...]."""
    fresh = fresh.reshape(-1, *[1] * (states.ndim - 1))
    # Fused with the write behind it, the read would make XLA copy the pool.
    return jnp.where(fresh, jnp.zeros((), states.dtype), jax.lax.optimization_barrier(states[index]))


def write(states: jax.Array, new: jax.Array, index: jax.Array, query_start: jax.Array | None) -> jax.Array:
    """The pool with the rows' new states, [R, ...], those of rows without tokens left out; in place when donated."""
    new = new.astype(states.dtype)
    if index.shape == (1,):
        # Inside a loop XLA copies the whole pool for a scatter of one entry.
        if query_start is not None:
            old = jax.lax.optimization_barrier(states[index])
            new = jnp.where(query_start[1] > query_start[0], new, old)
        result = jax.lax.dynamic_update_slice(states, new, [index[0]] + [jnp.int32(0)] * (states.ndim - 1))
    else:
        if query_start is not None:
            index = jnp.where(query_start[1:] > query_start[:-1], index, states.shape[0])
        result = states.at[index].set(new, mode="drop")
    # Fused with what reads it, the write would make XLA copy the pool.
    return jax.lax.optimization_barrier(result)


def scan(
    step: Callable[[jax.Array, Any], tuple[jax.Array, jax.Array]],
    operands: Any,
    states: jax.Array,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    """Runs step(state, operands of one token) -> (state, result) token by token: the references' recurrence.

    operands: a tree of [T, ...]. Returns the results, [T, ...], and the pool.
    """
    before = read(states, index, fresh)
    if decode:
        after, results = jax.vmap(step)(before, operands)
        return results, write(states, after, index, None)
    rows = index.shape[0]
    row = row_of_tokens(query_start, jax.tree.leaves(operands)[0].shape[0])

    def turn(carried: jax.Array, token: Any) -> tuple[jax.Array, jax.Array]:
        row, operands = token
        state, result = step(carried[row], operands)
        return carried.at[row].set(state), result

    # One state more, for the padding tokens.
    carried, results = jax.lax.scan(turn, jnp.pad(before, [(0, 1)] + [(0, 0)] * (states.ndim - 1)), (row, operands))
    padding = (row == rows).reshape(-1, *[1] * (results.ndim - 1))
    return jnp.where(padding, 0.0, results), write(states, carried[:rows], index, query_start)


def entries(index: jax.Array, fresh: jax.Array) -> jax.Array:
    """Each row's entry in one number for the kernels, [R] int32: ~index, which is negative, where the row is fresh."""
    return jnp.where(fresh, ~index, index)


def tiles(
    index: jax.Array, query_start: jax.Array, fresh: jax.Array, tokens: int, size: int
) -> tuple[jax.Array, jax.Array]:
    """Cuts the rows, and as one row more the padding tokens, into tiles of at most `size` tokens.

    Returns work [tiles, 5] int32: a tile's first token, how many it holds (0 for tiles left over), the place of the
    first in its row, the row's count of tokens (0 for padding tokens), entries' number; and first [R + 2] int32, the
    first tile of each row.
    """
    shared = share_tiles(query_start, tokens, size)
    counts = jnp.where(shared.row < index.shape[0], shared.end - shared.begin, 0)
    entry = jnp.pad(entries(index, fresh), (0, 1))[shared.row]
    return jnp.stack([shared.first, shared.held, shared.first - shared.begin, counts, entry], axis=1), shared.number
