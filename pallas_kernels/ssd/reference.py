"""ssd in plain XLA: the recurrence, token by token."""

import jax
import jax.numpy as jnp

from pallas_kernels.recurrent import scan


def ssd(
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
    """See pallas_kernels.ssd."""
    heads = x.shape[1]
    shared = heads // B.shape[1]
    A = A.astype(jnp.float32)
    D = jnp.zeros((heads,), jnp.float32) if D is None else D.astype(jnp.float32)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x, dt, B, C = (operand.astype(jnp.float32) for operand in token)  # [H, P], [H], [G, S], [G, S]
        B, C = (jnp.repeat(operand, shared, axis=0)[:, None, :] for operand in (B, C))
        state = jnp.exp(dt * A)[:, None, None] * state + (dt[:, None] * x)[:, :, None] * B
        return state, (state * C).sum(axis=2) + D[:, None] * x

    y, states = scan(step, (x, dt, B, C), states, index, query_start, fresh, decode)
    return y.astype(x.dtype), states
