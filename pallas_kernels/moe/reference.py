"""moe in plain XLA: few assignments one by one, many in blocks of one expert, each with a copy of its weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.moe.schedule import schedule

_CLAMPED_SWIGLU_LIMIT = 7.0
_CLAMPED_SWIGLU_ALPHA = 1.702
_GATHERED_BYTES = 256 << 20  # of expert weights copied at once: a GPU gains from width, a CPU does not
_CPU_GATHERED_BYTES = 1 << 20

_GATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def moe(
    x: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    expert_ids: jax.Array,
    expert_weights: jax.Array,
    gate_up_bias: jax.Array | None,
    down_bias: jax.Array | None,
    *,
    activation: str,
) -> jax.Array:
    """See pallas_kernels.moe."""
    num_experts, inner, embed = down.shape
    tokens, per_token = expert_ids.shape

    def run_experts(rows: jax.Array, expert: jax.Array) -> jax.Array:
        """rows: [B, S, E]; expert: [B], of each block of S. Returns [B, S, E]."""
        hidden = _gated(_linear(rows, gate_up, gate_up_bias, expert), activation).astype(x.dtype)
        return _linear(hidden, down, down_bias, expert).astype(x.dtype)

    chosen = (expert_ids >= 0) & (expert_ids < num_experts)
    limit = _CPU_GATHERED_BYTES if jax.default_backend() == "cpu" else _GATHERED_BYTES
    at_once = limit // ((gate_up.shape[2] + inner) * embed * down.dtype.itemsize)
    if expert_ids.size <= at_once:
        rows = jnp.repeat(x, per_token, axis=0)[:, None]
        results = run_experts(rows, jnp.where(chosen, expert_ids, 0).reshape(-1))
    else:
        results = _run_blocks(run_experts, x, expert_ids, num_experts, max(1, at_once))
    results = results.reshape(tokens, per_token, embed).astype(jnp.float32) * expert_weights[:, :, None]
    return jnp.where(chosen[:, :, None], results, 0.0).sum(axis=1).astype(x.dtype)


def _run_blocks(
    run_experts: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    expert_ids: jax.Array,
    num_experts: int,
    at_once: int,
) -> jax.Array:
    """The result of each assignment, [T * K, E]; anything for those to no expert."""
    assignments, per_token = expert_ids.size, expert_ids.shape[1]
    size = min(128, max(8, 1 << (assignments // num_experts).bit_length()))
    plan = schedule(expert_ids, num_experts, size)
    blocks = plan.expert.shape[0]
    groups = -(-blocks // at_once)
    expert, start = (jnp.pad(a, (0, groups * at_once - blocks)) for a in (plan.expert, plan.start))

    def run_group(group: jax.Array, out: jax.Array) -> jax.Array:
        chosen, begin = (jax.lax.dynamic_slice_in_dim(a, group * at_once, at_once) for a in (expert, start))
        # A block's last rows may be its neighbour's assignments: computed with the wrong expert, and read by nobody.
        place = begin[:, None] + jnp.arange(size, dtype=jnp.int32)[None, :]
        rows = x[plan.order[jnp.minimum(place, assignments - 1)] // per_token]
        return out.at[group].set(run_experts(rows, chosen))

    out = jnp.zeros((groups, at_once, size, x.shape[1]), x.dtype)
    out = jax.lax.fori_loop(0, (plan.used + at_once - 1) // at_once, run_group, out)
    return out.reshape(-1, x.shape[1])[jnp.maximum(plan.slot, 0)]


def _linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None, expert: jax.Array) -> jax.Array:
    """x: [B, S, in]; weight: [X, in, out]; bias: [X, out]; expert: [B]. Returns [B, S, out] float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    out = jnp.einsum("bsi,bio->bso", x, weight[expert], precision=precision, preferred_element_type=jnp.float32)
    return out if bias is None else out + bias[expert].astype(jnp.float32)[:, None, :]


def _gated(gate_up: jax.Array, activation: str) -> jax.Array:
    """gate_up: [..., 2 * F] float32, or [..., F] where the activation has no gate -> [..., F]."""
    if activation == "relu2":
        return jnp.square(jax.nn.relu(gate_up))
    gate, up = jnp.split(gate_up, 2, axis=-1)
    if activation == "clamped_swiglu":
        gate = jnp.minimum(gate, _CLAMPED_SWIGLU_LIMIT)
        up = jnp.clip(up, -_CLAMPED_SWIGLU_LIMIT, _CLAMPED_SWIGLU_LIMIT)
        return gate * jax.nn.sigmoid(_CLAMPED_SWIGLU_ALPHA * gate) * (up + 1.0)
    return _GATES[activation](gate) * up
