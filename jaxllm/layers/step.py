"""What a model is called with beside its cache: the tokens of one step and where they stand in their sequences."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Step:
    """The tokens of one step, ragged over its rows. T tokens, R rows.

    A row is one request's share; its tokens are consecutive: tokens[query_start[r] : query_start[r + 1]].
    Padding tokens stand behind the last row's and yield values nobody reads; padding rows
    are empty and have kv_len 0.

    Attributes:
        tokens: [T] int32 ids.
        positions: [T] int32 place of each token in its sequence; 0 for padding.
        query_start: [R + 1] int32.
        kv_len: [R] int32 tokens of the row in the cache once this step's are written.
        decode: static; True when T == R and every row is one token.
        tail: static; True where of the result only each row's last token is read: what heeds it (`heeds_tail`) returns
            those alone, [R, E] for [T, E].
    """

    tokens: jax.Array
    positions: jax.Array
    query_start: jax.Array
    kv_len: jax.Array
    decode: bool = field(default=False, metadata={"static": True})
    tail: bool = field(default=False, metadata={"static": True})

    @property
    def last(self) -> jax.Array:
        """[R] int32: each row's last token; some token for a row without any."""
        return jnp.maximum(self.query_start[1:] - 1, jnp.int32(0))

    @property
    def real(self) -> jax.Array:
        """[T] bool: the tokens that are no padding."""
        if self.decode:
            return self.kv_len > 0
        return jnp.arange(self.tokens.shape[0], dtype=jnp.int32) < self.query_start[-1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseStep:
    """A rectangle of sequences without a cache, for training and whole-sequence logits.

    tokens, positions: [B * S] int32, row after row; `batch` (static) is B.
    """

    tokens: jax.Array
    positions: jax.Array
    batch: int = field(metadata={"static": True})

    @property
    def real(self) -> None:
        """No token is padding."""
        return None

    @classmethod
    def of(cls, tokens: jax.Array) -> "DenseStep":
        """tokens: [B, S] int32."""
        batch, length = tokens.shape
        positions = jnp.tile(jnp.arange(length, dtype=jnp.int32), batch)
        return cls(tokens=tokens.reshape(-1), positions=positions, batch=batch)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncodeStep:
    """Whole sequences without a cache, ragged over R rows of T tokens together: for encoders and pooling.

    Row r is one sequence: tokens[query_start[r] : query_start[r + 1]], from its first token to its last. Padding
    tokens stand behind the last row's and yield values nobody reads; padding rows are empty.

    Attributes:
        tokens: [T] int32 ids.
        positions: [T] int32 place of each token in its sequence; 0 for padding.
        query_start: [R + 1] int32.
        token_types: [T] int32 which segment of its sequence a token belongs to, for models that tell them apart.
    """

    tokens: jax.Array
    positions: jax.Array
    query_start: jax.Array
    token_types: jax.Array | None = None

    @property
    def real(self) -> jax.Array:
        """[T] bool: the tokens that are no padding."""
        return jnp.arange(self.tokens.shape[0], dtype=jnp.int32) < self.query_start[-1]

    @classmethod
    def of(cls, tokens: jax.Array, count: jax.Array, token_types: jax.Array | None = None) -> "EncodeStep":
        """tokens, token_types: [T] int32; count: [R] int32 tokens of each row."""
        rows, place = count.shape[0], jnp.arange(tokens.shape[0], dtype=jnp.int32)
        query_start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count, dtype=jnp.int32)])
        row = jnp.searchsorted(query_start[1:], place, side="right", method="compare_all").astype(jnp.int32)
        positions = jnp.where(place < query_start[-1], place - query_start[jnp.minimum(row, rows - 1)], 0)
        return cls(tokens, positions.astype(jnp.int32), query_start, token_types)


AnyStep = Step | DenseStep | EncodeStep


def narrow[S: AnyStep](x: jax.Array, step: S) -> tuple[jax.Array, S]:
    """x [T, ...] and the step; of a step with a tail each row's last token alone, [R, ...], and a step of those."""
    if not isinstance(step, Step) or not step.tail:
        return x, step
    last, rows = step.last, step.kv_len.shape[0]
    query_start = jnp.arange(rows + 1, dtype=jnp.int32)
    return x[last], replace(
        step, tokens=step.tokens[last], positions=step.positions[last], query_start=query_start, decode=True, tail=False
    )


def heeds_tail[F: Callable[..., Any]](call: F) -> F:
    """Marks a model's, a layer's or an attention's __call__ that heeds Step.tail. One that takes its place does not, as
    long as it is not marked too."""
    call.heeds_tail = True  # type: ignore[attr-defined]
    return call
