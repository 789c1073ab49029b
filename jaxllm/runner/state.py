"""What the device keeps per request slot, and how a request's parameters become a row of it.

The state is a flat tuple of arrays that every program takes donated and returns, always of the same structure.
Scalars of a slot share one int32 row (floats bit-cast), so that a program gathers and scatters them at once.
One slot beyond the last is the sink: padding rows read and write it.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import Request
from jaxllm.sampling import Processors, ProcessorState, RowParams
from jaxllm.sampling_params import MAX_STOP_TOKENS


class Column(enum.IntEnum):
    """Places in a slot's int32 row. The first three are the device's own; the rest come from the host."""

    LAST_TOKEN = 0  # drawn last; its keys and values are not in the cache yet
    POSITION = 1  # of the last token
    DONE = 2  # the slot's request has met its end
    LIMIT = 3  # Request.max_total
    PROMPT_LEN = 4
    SOURCE_LEN = 5
    MIN_TOKENS = 6
    TOP_K = 7
    SEED_LOW = 8
    SEED_HIGH = 9
    SAMPLE_INDEX = 10
    PROCESSORS = 11  # a bit for each logits processor that the request uses
    TEMPERATURE = 12  # float32 bits, as are the next two
    TOP_P = 13
    MIN_P = 14
    STOP_IDS = 15  # MAX_STOP_TOKENS of them, -1 where there is none


FIRST_PARAM = Column.LIMIT
WIDTH = Column.STOP_IDS + MAX_STOP_TOKENS
NUM_PARAMS = WIDTH - FIRST_PARAM


class Undrawn(NamedTuple):
    """What a forward program of up to S rows leaves for the draw program behind it, which may be of more rows or fewer:
    those of no request are the sink's, slot S, and draw nothing.

    It lies in the state, at one address: command buffers hold the addresses that they were recorded with, and are
    recorded anew where a program's output, and so whatever is placed beside it, lies elsewhere than the last time.

    logits: [S, V] float32. rows: [S, 3] int32, the slot, the position of the token to draw, whether one is drawn.
    """

    logits: jax.Array
    rows: jax.Array

    def write(self, logits: jax.Array, slot: jax.Array, at: jax.Array, draws: jax.Array) -> "Undrawn":
        """With logits [R, V] of the rows' slots [R], from which tokens at positions [R] are to be drawn."""
        rows = jnp.stack([slot, at, draws.astype(jnp.int32)], axis=1)
        nobody = jnp.asarray([len(self.rows), 0, 0], jnp.int32)
        filled = self.rows.at[: len(rows)].set(rows).at[len(rows) :].set(nobody)
        return Undrawn(self.logits.at[: len(logits)].set(logits), filled)

    def read(self, num_rows: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The arguments of `write` for so many rows; of those that it did not have, the logits are anything."""
        slot, at, draws = self.rows[:num_rows].T
        return self.logits[:num_rows], slot, at, draws != 0


class State(NamedTuple):
    """Generation state of S slots and the sink.

    rows: [S + 1, WIDTH] int32, see Column.
    tables: [S + 1, width] int32 block tables, see BlockTables.
    processors: what the logits processors know, kept for the requests that use them only.
    undrawn: between a forward program and its draw program.
    """

    rows: jax.Array
    tables: jax.Array
    processors: ProcessorState
    undrawn: Undrawn


def new_state(max_num_seqs: int, width: int, vocab_size: int, processors: Processors) -> State:
    """Empty state for max_num_seqs slots, each with `width` places in block tables."""
    slots = max_num_seqs + 1
    return State(
        rows=jnp.zeros((slots, WIDTH), jnp.int32),
        tables=jnp.zeros((slots, width), jnp.int32),
        processors=processors.new_state(slots),
        undrawn=Undrawn(
            logits=jnp.zeros((max_num_seqs, vocab_size), jnp.float32),
            rows=jnp.zeros((max_num_seqs, 3), jnp.int32).at[:, 0].set(max_num_seqs),
        ),
    )


def pack_params(request: Request, processors: int) -> np.ndarray:
    """The host's part of a slot's row: [NUM_PARAMS] int32, columns FIRST_PARAM onwards. processors: their bits."""
    p = request.params
    out = np.full(NUM_PARAMS, -1, np.int32)
    numbers = out[: Column.STOP_IDS - FIRST_PARAM]
    seed = np.asarray([request.seed & 0xFFFFFFFF, request.seed >> 32 & 0xFFFFFFFF], np.uint32)
    lengths = request.max_total, len(request.prompt), len(request.source), p.min_tokens
    numbers[: Column.SEED_LOW - FIRST_PARAM] = (*lengths, p.top_k)
    numbers[Column.SEED_LOW - FIRST_PARAM : Column.SAMPLE_INDEX - FIRST_PARAM] = seed.view(np.int32)
    numbers[Column.SAMPLE_INDEX - FIRST_PARAM] = request.sample_index
    numbers[Column.PROCESSORS - FIRST_PARAM] = processors
    reals = np.asarray([p.temperature, p.top_p, p.min_p], np.float32)
    numbers[Column.TEMPERATURE - FIRST_PARAM :] = reals.view(np.int32)
    assert len(request.stop_ids) <= MAX_STOP_TOKENS, "the engine's intake refuses more"
    out[Column.STOP_IDS - FIRST_PARAM :][: len(request.stop_ids)] = request.stop_ids
    return out


def row_params(rows: jax.Array) -> RowParams:
    """Sampling parameters of gathered rows [B, WIDTH]."""

    def real(column: Column) -> jax.Array:
        return jax.lax.bitcast_convert_type(rows[:, column], jnp.float32)

    return RowParams(
        temperature=real(Column.TEMPERATURE),
        top_k=rows[:, Column.TOP_K],
        top_p=real(Column.TOP_P),
        min_p=real(Column.MIN_P),
        seed=jax.lax.bitcast_convert_type(rows[:, Column.SEED_LOW : Column.SAMPLE_INDEX], jnp.uint32),
        sample_index=rows[:, Column.SAMPLE_INDEX],
    )
