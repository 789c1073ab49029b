"""The sampling parameters of a batch, one entry per row."""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowParams:
    """Parameters of B rows; names and meanings are `SamplingParams`'s.

    Attributes:
        temperature: [B] float32; a row below 1e-5 is greedy.
        top_k: [B] int32; 0 keeps every token.
        top_p, min_p: [B] float32; 1 and 0 keep every token.
        seed: [B, 2] uint32, the low and the high word.
        sample_index: [B] int32.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    sample_index: jax.Array
