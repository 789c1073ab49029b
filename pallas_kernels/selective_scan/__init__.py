"""The selective scan of Mamba (Gu and Dao 2023), continued from each row's state."""

import jax

from pallas_kernels import choose
from pallas_kernels.recurrent import check_rows


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
    decode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Channel c of a row: state = exp(dt * A[c]) * state + dt * x * B, then y = state . C + D[c] * x.

    x: [T, C]; dt: [T, C], the time steps, after softplus; A: [C, S], negative; B, C: [T, S]; D: [C];
    states: [N, C, S] float32. index, query_start, fresh, decode: see pallas_kernels.recurrent. float32 inside.

    Returns y [T, C] in x.dtype and states, in place when donated.
    """
    tokens, channels = x.shape
    check_rows("selective_scan", tokens, index, query_start, fresh, decode)
    size = A.shape[-1]
    for name, array, shape in (
        ("dt", dt, (tokens, channels)),
        ("A", A, (channels, size)),
        ("B", B, (tokens, size)),
        ("C", C, (tokens, size)),
        ("D", D, (channels,)),
        ("states", states, (states.shape[0], channels, size)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"selective_scan: {name} {array.shape} must be {shape} beside x {x.shape} and A {A.shape}")
    if states.dtype != "float32":
        raise ValueError(f"selective_scan: states are {states.dtype} and must be float32")
    y, states = choose.run(
        "selective_scan",
        ("triton", "reference"),
        x,
        dt,
        A,
        B,
        C,
        D,
        states,
        index,
        query_start,
        fresh,
        decode=decode,
    )
    return y, states
