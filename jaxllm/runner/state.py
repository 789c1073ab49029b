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

from jaxllm.core import MAX_STOP_TOKENS, Request
from jaxllm.sampling import RowParams


class Column(enum.IntEnum):
    """Places in a slot's int32 row. The first three are the device's own; the rest come from the host."""

    LAST_TOKEN = 0  # drawn last; its keys and values are not in the cache yet
    POSITION = 1  # of the last token
    DONE = 2  # the slot's request has met its end
    LIMIT = 3  # Request.max_total
    PROMPT_LEN = 4
    MIN_TOKENS = 5
    TOP_K = 6
    SEED_LOW = 7
    SEED_HIGH = 8
    SAMPLE_INDEX = 9
    TEMPERATURE = 10  # float32 bits, as are the next five
    TOP_P = 11
    MIN_P = 12
    REPETITION_PENALTY = 13
    FREQUENCY_PENALTY = 14
    PRESENCE_PENALTY = 15
    STOP_IDS = 16  # MAX_STOP_TOKENS of them, -1 where there is none


FIRST_PARAM = Column.LIMIT
WIDTH = Column.STOP_IDS + MAX_STOP_TOKENS
NUM_PARAMS = WIDTH - FIRST_PARAM


class State(NamedTuple):
    """Generation state of S slots and the sink.

    rows: [S + 1, WIDTH] int32, see Column.
    pages: [S + 1, MP] int32 block tables.
    counts: [S + 1, V] int16 occurrences of each token in the output, kept for penalised requests only.
    in_prompt: [S + 1, V] bool whether the prompt holds the token, likewise.
    """

    rows: jax.Array
    pages: jax.Array
    counts: jax.Array
    in_prompt: jax.Array


def new_state(max_num_seqs: int, max_pages: int, vocab_size: int) -> State:
    """Empty state for max_num_seqs slots of max_pages pages each."""
    slots = max_num_seqs + 1
    return State(
        rows=jnp.zeros((slots, WIDTH), jnp.int32),
        pages=jnp.zeros((slots, max_pages), jnp.int32),
        counts=jnp.zeros((slots, vocab_size), jnp.int16),
        in_prompt=jnp.zeros((slots, vocab_size), jnp.bool_),
    )


def pack_params(request: Request) -> np.ndarray:
    """The host's part of a slot's row: [NUM_PARAMS] int32, columns FIRST_PARAM onwards."""
    p = request.params
    out = np.full(NUM_PARAMS, -1, np.int32)
    numbers = out[: Column.STOP_IDS - FIRST_PARAM]
    seed = np.asarray([request.seed & 0xFFFFFFFF, request.seed >> 32 & 0xFFFFFFFF], np.uint32)
    numbers[: Column.SEED_LOW - FIRST_PARAM] = (request.max_total, len(request.prompt), p.min_tokens, p.top_k)
    numbers[Column.SEED_LOW - FIRST_PARAM : Column.SAMPLE_INDEX - FIRST_PARAM] = seed.view(np.int32)
    numbers[Column.SAMPLE_INDEX - FIRST_PARAM] = request.sample_index
    numbers[Column.TEMPERATURE - FIRST_PARAM :] = np.asarray(
        [p.temperature, p.top_p, p.min_p, p.repetition_penalty, p.frequency_penalty, p.presence_penalty], np.float32
    ).view(np.int32)
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
        repetition_penalty=real(Column.REPETITION_PENALTY),
        frequency_penalty=real(Column.FREQUENCY_PENALTY),
        presence_penalty=real(Column.PRESENCE_PENALTY),
        seed=jax.lax.bitcast_convert_type(rows[:, Column.SEED_LOW : Column.SAMPLE_INDEX], jnp.uint32),
        sample_index=rows[:, Column.SAMPLE_INDEX],
    )
