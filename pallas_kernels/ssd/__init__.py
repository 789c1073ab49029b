"""The state-space dual of Mamba 2 (Dao and Gu 2024), continued from each row's state."""

import jax

from pallas_kernels import choose
from pallas_kernels.recurrent import check_rows


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
    decode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Head h of a row: state = exp(dt * A[h]) * state + dt * outer(x, B), then y = state @ C + D[h] * x.

    x: [T, H, P]; dt: [T, H], the time steps, after softplus; A: [H], negative; B, C: [T, G, S], those of group
    h // (H / G) for head h; D: [H]; states: [N, H, P, S] float32. index, query_start, fresh, decode: see
    pallas_kernels.recurrent. Sums are float32; the kernel multiplies operands in x.dtype.

    Returns y [T, H, P] in x.dtype and states, in place when donated.
    """
    tokens, heads, dim = x.shape
    check_rows("ssd", tokens, index, query_start, fresh, decode)
    groups, size = B.shape[1:]
    for name, array, shape in (
        ("dt", dt, (tokens, heads)),
        ("A", A, (heads,)),
        ("B", B, (tokens, groups, size)),
        ("C", C, (tokens, groups, size)),
        ("D", D, (heads,)),
        ("states", states, (states.shape[0], heads, dim, size)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"ssd: {name} {array.shape} must be {shape} beside x {x.shape} and B {B.shape}")
    if heads % groups:
        raise ValueError(f"ssd: {heads} heads do not share {groups} groups evenly")
    if states.dtype != "float32":
        raise ValueError(f"ssd: states are {states.dtype} and must be float32")
    y, states = choose.run(
        "ssd", ("triton", "reference"), x, dt, A, B, C, D, states, index, query_start, fresh, decode=decode
    )
    return y, states
