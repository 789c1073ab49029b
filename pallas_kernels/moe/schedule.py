"""Sorts a step's assignments of tokens to experts into blocks of one expert each, on the device.

An assignment is a place in expert_ids, counted through: t * K + k.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.schedule import share_out


class Schedule(NamedTuple):
    """Blocks of at most `size` assignments to one expert. N assignments, B blocks, a static number.

    order: [N] int32, the assignments by expert, those to none at the end.
    expert, start, filled: [B] int32, each block's expert, first place in `order`, and number of assignments, which is
        0 for the blocks left over, at the end.
    slot: [N] int32, each assignment's block * size + its place in the block; -1 for those to no expert.
    used: [] int32, how many blocks are not left over.
    """

    order: jax.Array
    expert: jax.Array
    start: jax.Array
    filled: jax.Array
    slot: jax.Array
    used: jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def schedule(expert_ids: jax.Array, num_experts: int, size: int) -> Schedule:
    """expert_ids: [T, K]; num_experts: X; size: the most assignments that a block takes."""
    ids = expert_ids.reshape(-1)
    assignments = ids.shape[0]
    ids = jnp.where((ids >= 0) & (ids < num_experts), ids, num_experts)
    order = jnp.argsort(ids, stable=True).astype(jnp.int32)
    by_expert = ids[order]
    experts = jnp.arange(num_experts + 1, dtype=jnp.int32)
    begin = jnp.searchsorted(by_expert, experts, side="left", method="compare_all").astype(jnp.int32)
    counts = begin[1:] - begin[:-1]
    blocks = (assignments + min(assignments, num_experts) * (size - 1)) // size
    expert, place, first = share_out((counts + size - 1) // size, blocks)
    start = begin[expert] + place * size
    filled = jnp.where(expert >= 0, jnp.clip(begin[expert + 1] - start, 0, size), 0)

    rank = jnp.zeros_like(order).at[order].set(jnp.arange(assignments, dtype=jnp.int32), unique_indices=True)
    within = rank - begin[ids]
    slot = jnp.where(ids < num_experts, first[ids] * size + within, -1)
    return Schedule(order, jnp.maximum(expert, 0), start, filled, slot, first[-1])
