"""Depthwise causal convolution over each row's tokens, continued from the row's last inputs."""

import jax

from pallas_kernels import choose
from pallas_kernels.recurrent import check_rows


def causal_conv(
    x: jax.Array,
    states: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
    *,
    activation: str | None = None,
    decode: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Returns activation(bias + sum over k of weight[:, k] * x[t - K + 1 + k]) and the pool of states.

    x: [T, C]; states: [N, C, K - 1], a row's last inputs, the latest at the end; weight: [C, K]; bias: [C];
    activation: "silu" or None. index, query_start, fresh, decode: see pallas_kernels.recurrent. float32 inside.

    Returns y [T, C] in x.dtype and states, in place when donated.
    """
    check_rows("causal_conv", x.shape[0], index, query_start, fresh, decode)
    channels, taps = weight.shape
    if x.shape[1:] != (channels,) or states.shape[1:] != (channels, taps - 1) or taps < 2:
        raise ValueError(
            f"causal_conv: x {x.shape} and states {states.shape} do not fit weight {weight.shape}, which is [C, K], K"
            " at least 2; states hold the last K - 1 inputs"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"causal_conv: bias {bias.shape} must be ({channels},)")
    if activation not in (None, "silu"):
        raise ValueError(f'causal_conv: activation={activation!r} is neither "silu" nor None')
    y, states = choose.run(
        "causal_conv",
        ("triton", "reference"),
        x,
        states,
        weight,
        bias,
        index,
        query_start,
        fresh,
        activation=activation,
        decode=decode,
    )
    return y, states
