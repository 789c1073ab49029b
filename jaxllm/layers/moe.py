"""Mixtures of experts: routing, which chooses each token's experts and weighs them, and the experts themselves.

A routing is called with the router's scores, logits [T, X] float32, the learned correction [X] float32 or None, which
SparseMixer has no use for, and real [T] bool or None: tokens that are padding go to no expert, which is expert -1.

Sources: Shazeer et al. 2017; Mixtral, Jiang et al. 2024; DeepSeek-V3, DeepSeek-AI 2024; SparseMixer, Liu et al. 2024.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.errors import ConfigError
from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import ACTIVATIONS, MLP, GatedMLP
from jaxllm.layers.parameter import Constant, Dtype, Normal, Parameter, broadcast
from pallas_kernels.moe import ACTIVATIONS as EXPERT_ACTIVATIONS
from pallas_kernels.moe import UNGATED, moe
from pallas_kernels.softmax_top_k import softmax_top_k

Routed = tuple[jax.Array, jax.Array]
"""Expert ids [T, K] int32, weights [T, K] float32."""


@dataclass(frozen=True)
class SoftmaxTopK:
    """The top_k most probable experts, from the best groups alone, weighted by their probabilities.

    The experts stand in `groups` groups of one size; the top_groups of them with the most probable experts stay in
    the choice. A learned correction, where there is one, is added for the choice alone. norm: p of the norm that the
    chosen weights are divided by, `least` at the least; 1 makes them sum to 1, None leaves them. scale: what they are
    multiplied by in the end.
    """

    top_k: int
    norm: float | None = 1.0
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    least: float = 0.0

    def __call__(self, logits: jax.Array, correction: jax.Array | None, real: jax.Array | None) -> Routed:
        if self.groups == 1 and correction is None:
            return softmax_top_k(logits, real, top_k=self.top_k, norm=self.norm, least=self.least, scale=self.scale)
        shares = jax.nn.softmax(logits, axis=-1)
        if self.groups > 1:
            shares = jnp.where(_in_best_groups(shares, self.groups, self.top_groups, judged_by=1), shares, 0.0)
        choice = shares if correction is None else shares + broadcast(correction, shares)
        _, ids = jax.lax.top_k(choice, self.top_k)
        weights = jnp.take_along_axis(shares, ids, axis=-1)
        if self.norm is not None:
            size = jnp.linalg.norm(weights, ord=self.norm, axis=-1, keepdims=True)
            weights = weights / jnp.maximum(size, self.least)
        return _of_real(real, ids), weights * self.scale


@dataclass(frozen=True)
class SigmoidTopK:
    """Experts chosen by sigmoid plus a learned correction, from the best groups alone, weighted by sigmoid.

    The experts stand in `groups` groups of one size; the top_groups of them whose two best experts have the largest
    sums stay in the choice. normalised: the weights are made to sum to 1, before they are multiplied by scale.
    """

    top_k: int
    groups: int = 1
    top_groups: int = 1
    normalised: bool = True
    scale: float = 1.0

    def __call__(self, logits: jax.Array, correction: jax.Array | None, real: jax.Array | None) -> Routed:
        scores = jax.nn.sigmoid(logits)
        choice = scores if correction is None else scores + broadcast(correction, scores)
        if self.groups > 1:
            choice = jnp.where(_in_best_groups(choice, self.groups, self.top_groups, judged_by=2), choice, -jnp.inf)
        _, ids = jax.lax.top_k(choice, self.top_k)
        weights = jnp.take_along_axis(scores, ids, axis=-1)
        if self.normalised:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        return _of_real(real, ids), weights * self.scale


def _of_real(real: jax.Array | None, ids: jax.Array) -> jax.Array:
    """ids [T, K], -1 for tokens that are padding."""
    return ids if real is None else jnp.where(real[:, None], ids, -1)


def _in_best_groups(scores: jax.Array, groups: int, top_groups: int, *, judged_by: int) -> jax.Array:
    """[T, X] bool: the experts of the top_groups groups whose judged_by best scores [T, X] have the largest sums."""
    grouped = scores.reshape(scores.shape[0], groups, -1)
    best = jax.lax.top_k(grouped, judged_by)[0].sum(axis=-1)
    _, kept = jax.lax.top_k(best, top_groups)
    stays = jax.nn.one_hot(kept, groups, dtype=jnp.bool_).any(axis=1)
    return jnp.repeat(stays, grouped.shape[2], axis=1)


@dataclass(frozen=True)
class SparseMixer:
    """The two largest scores, one after the other, each weighted by its softmax over those not far below it.

    jitter: half of the distance, relative to the larger magnitude, from which a score counts as far below.
    """

    jitter: float
    top_k: int = 2

    def __call__(self, logits: jax.Array, correction: jax.Array | None, real: jax.Array | None) -> Routed:
        left, ids, weights = logits, [], []
        for _ in range(self.top_k):
            top, best = left.max(axis=-1, keepdims=True), left.argmax(axis=-1)
            far = (top - logits) / jnp.maximum(jnp.abs(logits), top) > 2 * self.jitter
            shares = jax.nn.softmax(jnp.where(far, -jnp.inf, left), axis=-1)
            ids.append(best.astype(jnp.int32))
            weights.append(jnp.take_along_axis(shares, best[:, None], axis=-1)[:, 0])
            left = jnp.where(jax.nn.one_hot(best, logits.shape[1], dtype=jnp.bool_), -jnp.inf, left)
        return _of_real(real, jnp.stack(ids, axis=-1)), jnp.stack(weights, axis=-1)


Routing = SoftmaxTopK | SigmoidTopK | SparseMixer

_ACTIVATIONS = {
    "swish": "silu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
"""The operation's names of activations where they are not the config's."""
_GATES = set(EXPERT_ACTIVATIONS) - set(UNGATED)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A family's mixture of experts.

    Attributes:
        sparse: per layer, whether its MLP is a mixture; the others are dense.
        inner_size: of one expert.
        shared_size: inner size of the expert that sees every token; 0 for none.
        shared_gate: the shared expert's output is weighted by a sigmoid of its own.
        activation: of the experts, by the operation's names; None is the config's.
        gated: the experts have gates; otherwise they are down(activation(up(x))), the shared one too.
        latent_size: of what the experts read and write in place of hidden states, which it is projected from and to;
            0 where they read and write those.
        router_bias, expert_bias, shared_bias: the projections have biases; shared_bias goes for those to and from the
            latent as well.
        correction: the routing adds a learned number per expert to the scores that experts are chosen by.
    """

    sparse: tuple[bool, ...]
    num_experts: int
    inner_size: int
    routing: Routing
    shared_size: int = 0
    shared_gate: bool = False
    activation: str | None = None
    gated: bool = True
    latent_size: int = 0
    router_bias: bool = False
    expert_bias: bool = False
    shared_bias: bool = False
    correction: bool = False

    def check(self, activation: str) -> None:
        """ConfigError where the numbers do not go together, or experts cannot have the config's activation."""
        routing, num = self.routing, self.num_experts
        if routing.top_k > num:
            raise ConfigError(f"config.json: {routing.top_k} experts for each token are more than the {num} there are")
        if not isinstance(routing, SparseMixer) and routing.groups > 1:
            groups, judges = routing.groups, 2 if isinstance(routing, SigmoidTopK) else 1
            if num % groups or num // groups < judges:
                raise ConfigError(
                    f"config.json: n_group={groups} must part {num} experts evenly, into groups of {judges} at least"
                )
            if routing.top_groups > groups:
                raise ConfigError(f"config.json: topk_group={routing.top_groups} must not exceed n_group={groups}")
        known = [name for name in ACTIVATIONS if _ACTIVATIONS.get(name, name) in (_GATES if self.gated else UNGATED)]
        if self.activation is None and activation not in known:
            raise ConfigError(
                f"config.json: activation {activation!r} of a mixture's experts is not supported, only"
                f" {', '.join(known)}; take another checkpoint of this model, or add the case to pallas_kernels/moe"
            )


class Experts(nnx.Module):
    """Every expert's MLP, stacked: gate_up [X, E, 2 * F], or [X, E, F] without gates, and down [X, F, E]."""

    def __init__(
        self,
        mixture: Mixture,
        size: int,
        activation: str,
        dtype: Dtype,
        *,
        std: float,
        out_std: float,
    ):
        num, inner = mixture.num_experts, mixture.inner_size
        self.activation = mixture.activation or _ACTIVATIONS.get(activation, activation)
        parts = (inner, inner) if mixture.gated else (inner,)
        self.gate_up = Parameter(
            (num, size, sum(parts)), dtype, axes=("experts", "embed", "mlp"), init=Normal(std), parts=parts
        )
        self.down = Parameter((num, inner, size), dtype, axes=("experts", "mlp", "embed"), init=Normal(out_std))
        gate_up_bias = Parameter((num, sum(parts)), dtype, axes=("experts", "mlp"), init=Constant(0.0), parts=parts)
        down_bias = Parameter((num, size), dtype, axes=("experts", "embed"), init=Constant(0.0))
        self.gate_up_bias = gate_up_bias if mixture.expert_bias else None
        self.down_bias = down_bias if mixture.expert_bias else None

    def __call__(self, x: jax.Array, ids: jax.Array, weights: jax.Array) -> jax.Array:
        """x [T, E], ids and weights [T, K] -> [T, E]."""
        biases = (None if bias is None else bias[...] for bias in (self.gate_up_bias, self.down_bias))
        return moe(x, self.gate_up[...], self.down[...], ids, weights, *biases, activation=self.activation)


class MoE(nnx.Module):
    """The routed experts' weighted sum, plus the shared expert's output where there is one."""

    def __init__(
        self,
        mixture: Mixture,
        size: int,
        activation: str,
        dtype: Dtype,
        *,
        std: float,
        out_std: float,
    ):
        self.routing = mixture.routing
        self.router = Linear(
            size, mixture.num_experts, dtype, axes=("embed", "experts"), bias=mixture.router_bias, std=std
        )
        # Float32, since bfloat16 would round the choice.
        correction = Parameter((mixture.num_experts,), jnp.float32, axes=("experts",), init=Constant(0.0))
        self.correction = correction if mixture.correction else None
        latent, bias = mixture.latent_size, mixture.shared_bias
        self.experts = Experts(mixture, latent or size, activation, dtype, std=std, out_std=out_std)
        self.to_latent = Linear(size, latent, dtype, axes=("embed", "latent"), bias=bias, std=std) if latent else None
        self.from_latent = Linear(latent, size, dtype, axes=("latent", "embed"), bias=bias, std=std) if latent else None
        mlp_class = GatedMLP if mixture.gated else MLP
        shared = mlp_class(size, mixture.shared_size, activation, dtype, bias=bias, std=std, out_std=out_std)
        self.shared = shared if mixture.shared_size else None
        self.shared_gate = Linear(size, 1, dtype, axes=("embed", "gate"), std=std) if mixture.shared_gate else None

    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        """x [T, E] -> [T, E], zeros but for the shared expert where real [T] says padding; None: no token is."""
        correction = None if self.correction is None else self.correction[...]
        chosen = self.routing(self.router(x, jnp.float32), correction, real)
        out = self.experts(x if self.to_latent is None else self.to_latent(x), *chosen)
        if self.from_latent is not None:
            out = self.from_latent(out)
        if self.shared is None:
            return out
        shared = self.shared(x)
        if self.shared_gate is not None:
            shared = (jax.nn.sigmoid(self.shared_gate(x, jnp.float32)) * shared.astype(jnp.float32)).astype(x.dtype)
        return out + shared
