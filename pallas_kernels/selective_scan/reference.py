"""selective_scan in plain XLA: the recurrence, token by token."""

import jax
import jax.numpy as jnp

from pallas_kernels.recurrent import scan


def selective_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None,
    states: jax.Array,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
    *,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.selective_scan."""
    A = A.astype(jnp.float32)
    D = jnp.zeros(x.shape[1:], jnp.float32) if D is None else D.astype(jnp.float32)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, dt, B, C = (operand.astype(jnp.float32) for operand in token)  # [C], [C], [S], [S]
        state = jnp.exp(dt[:, None] * A) * state + (dt * x)[:, None] * B[None, :]
        return state, (state * C[None, :]).sum(axis=1) + D * x

    y, states = scan(step, (x, dt, B, C), states, index, query_start, fresh, decode)
    return y.astype(x.dtype), states
