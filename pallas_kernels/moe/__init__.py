"""Mixture of experts: each token through its chosen experts' gated feed-forward blocks, weighted and summed."""

import jax

from pallas_kernels import choose

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "clamped_swiglu", "relu2")
UNGATED = ("relu2",)


def moe(
    x: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    expert_ids: jax.Array,
    expert_weights: jax.Array,
    gate_up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    activation: str = "silu",
) -> jax.Array:
    """Sums over k: expert_weights[t, k] * expert(x[t]), the expert being expert_ids[t, k].

    x: [T, E]; gate_up: [X, E, 2 * F], an expert's gate columns, then its up columns, or [X, E, F] where the activation
    has no gate; down: [X, F, E];
    expert_ids: [T, K] int32, a token's experts, each another one; an id outside [0, X) is no expert and adds nothing;
    expert_weights: [T, K] float32; gate_up_bias: [X, 2 * F] or [X, F]; down_bias: [X, E].
    expert(x) = (activation(gate) * up) @ down, where gate, up = x @ gate_up. clamped_swiglu is gpt-oss's: gate at most
    7, up within 7 of 0, then gate * sigmoid(1.702 * gate) * (up + 1). relu2 has no gate: relu(x @ gate_up)^2 @ down.

    Returns [T, E] in x.dtype. Memory and work grow with T * K, not with T * X; the weights of experts that no token
    chose are not read.
    """
    tokens, size = x.shape
    experts, inner, _ = down.shape
    width = inner if activation in UNGATED else 2 * inner
    if gate_up.shape != (experts, size, width) or down.shape != (experts, inner, size):
        raise ValueError(f"moe: gate_up {gate_up.shape} and down {down.shape} do not fit x {x.shape} and each other")
    if expert_ids.ndim != 2 or expert_ids.shape[0] != tokens or expert_weights.shape != expert_ids.shape:
        raise ValueError(
            f"moe: expert_ids {expert_ids.shape} and expert_weights {expert_weights.shape} must both be [{tokens}, K]"
        )
    for name, bias, columns in (("gate_up_bias", gate_up_bias, width), ("down_bias", down_bias, size)):
        if bias is not None and bias.shape != (experts, columns):
            raise ValueError(f"moe: {name} {bias.shape} must be {(experts, columns)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"moe: activation={activation!r} is none of {', '.join(ACTIVATIONS)}")
    result: jax.Array = choose.run(
        "moe",
        ("triton", "reference"),
        x,
        gate_up,
        down,
        expert_ids,
        expert_weights,
        gate_up_bias,
        down_bias,
        activation=activation,
    )
    return result
