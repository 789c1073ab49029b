"""causal_conv in plain XLA: a shifted product per tap."""

import jax
import jax.numpy as jnp

from pallas_kernels.recurrent import read, row_of_tokens, write


def causal_conv(
    x: jax.Array,
    states: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
    *,
    activation: str | None,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.causal_conv."""
    tokens, last = x.shape[0], weight.shape[1] - 1
    rows = index.shape[0]
    if decode:
        query_start = jnp.arange(rows + 1, dtype=jnp.int32)
    before = read(states, index, fresh)

    def inputs(row: jax.Array, place: jax.Array) -> jax.Array:
        """x at a place within its row, at most `last` before its first token; rows and places: [M]. Returns [M, C]."""
        new = x[jnp.clip(query_start[row] + place, 0, tokens - 1)]
        old = before[row, :, jnp.clip(last + place, 0, last - 1)]
        return jnp.where((place >= 0)[:, None], new, old.astype(x.dtype))

    row = row_of_tokens(query_start, tokens)
    valid = row < rows
    row = jnp.minimum(row, rows - 1)
    place = jnp.arange(tokens, dtype=jnp.int32) - query_start[row]
    y = jnp.zeros(x.shape, jnp.float32) if bias is None else jnp.broadcast_to(bias.astype(jnp.float32), x.shape)
    for tap in range(last + 1):
        y += inputs(row, place - (last - tap)).astype(jnp.float32) * weight[None, :, tap].astype(jnp.float32)
    if activation == "silu":
        y = jax.nn.silu(y)
    every, counts = jnp.arange(rows, dtype=jnp.int32), query_start[1:] - query_start[:-1]
    after = jnp.stack([inputs(every, counts - (last - tap)) for tap in range(last)], axis=-1)
    return jnp.where(valid[:, None], y, 0.0).astype(x.dtype), write(states, after, index, query_start)
