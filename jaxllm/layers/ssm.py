"""State-space layers: what a row has read is one state of fixed size, wherever in its sequence it stands.

Sources: Mamba, Gu and Dao 2023; Mamba 2, Dao and Gu 2024; the short convolution, Liquid AI's LFM2, 2025. Each mixer is
called with x [T, E], the step and its StateCache, None without a Step, and returns [T, E] and the cache.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.core import RecurrentState
from jaxllm.layers.cache import StateCache
from jaxllm.layers.linear import Linear
from jaxllm.layers.norm import GroupRMSNorm, RMSNorm
from jaxllm.layers.parameter import Constant, Dtype, Normal, Parameter, Shape, broadcast
from jaxllm.layers.step import AnyStep, DenseStep, Step
from pallas_kernels.causal_conv import causal_conv
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.ssd import ssd


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """The sizes of Mamba's layers.

    Attributes:
        inner_size: channels, each with a state of state_size.
        conv_size: inputs that a convolution sees, the token's own included.
        rank: of what time steps are projected from.
        bias: of the projections into and out of the layer.
        norm_class: of time steps, B and C; None leaves them.
    """

    inner_size: int
    state_size: int
    conv_size: int
    rank: int
    bias: bool = False
    conv_bias: bool = True
    norm_class: type[RMSNorm] | None = None
    norm_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """The sizes of Mamba 2's layers.

    Attributes:
        num_heads: of head_dim channels, whose states have state_size columns.
        groups: of heads; those of one share B and C.
        conv_size: inputs that a convolution sees, the token's own included.
        bias, out_bias: of the projections into and out of the layer.
        time_step_limit: bounds of the time steps.
        norm_groups: of channels that are normalised each for itself; 0 leaves them.
        norm_before_gate: the gate multiplies what was normalised; otherwise it comes first.
        factors: of the gate, the channels, B, C and the time steps, as in_proj makes them.
        in_factor: of the layer's input.
    """

    num_heads: int
    head_dim: int
    state_size: int
    groups: int
    conv_size: int
    bias: bool = False
    out_bias: bool = False
    conv_bias: bool = True
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    norm_groups: int
    norm_before_gate: bool = False
    norm_eps: float
    factors: tuple[float, float, float, float, float] = (1.0,) * 5
    in_factor: float = 1.0

    @property
    def inner_size(self) -> int:
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class ShortConv:
    """The sizes of LFM2's convolution layers: the inputs that a convolution sees, and whether there are biases."""

    conv_size: int
    bias: bool = False


StateSpace = Mamba | Mamba2 | ShortConv


@dataclass(frozen=True)
class _LogCount:
    """Initialise with log(1), log(2), ... along the last axis (S4D-real, Gu et al. 2022)."""

    def __call__(self, key: jax.Array, shape: Shape, dtype: Dtype) -> jax.Array:
        counts = jnp.arange(1, shape[-1] + 1, dtype=jnp.float32).reshape(*[1] * (len(shape) - 1), -1)
        return jnp.broadcast_to(jnp.log(counts), shape).astype(dtype)


@dataclass(frozen=True)
class _TimeSteps:
    """Initialise with what softplus makes a time step of, the time steps' logarithms evenly between the two bounds."""

    least: float = 0.001
    most: float = 0.1

    def __call__(self, key: jax.Array, shape: Shape, dtype: Dtype) -> jax.Array:
        bounds = math.log(self.least), math.log(self.most)
        steps = jnp.exp(jax.random.uniform(key, shape, jnp.float32, *bounds))
        return (steps + jnp.log(-jnp.expm1(-steps))).astype(dtype)


class Convolution(nnx.Module):
    """A causal convolution of each channel: weight [C, K], the tap of the token itself last."""

    def __init__(self, channels: int, taps: int, dtype: Dtype, *, bias: bool, activation: str | None):
        self.activation = activation
        self.weight = Parameter((channels, taps), dtype, axes=("mlp", "tap"), init=Normal(taps**-0.5))
        self.bias = Parameter((channels,), dtype, axes=("mlp",), init=Constant(0.0)) if bias else None

    def __call__(
        self, x: jax.Array, states: jax.Array, rows: tuple[jax.Array, ...], decode: bool
    ) -> tuple[jax.Array, jax.Array]:
        """x [T, C], states [N, C, K - 1] -> [T, C], states."""
        bias = None if self.bias is None else self.bias[...]
        return causal_conv(x, states, self.weight[...], bias, *rows, activation=self.activation, decode=decode)


def _begin(
    step: AnyStep, cache: StateCache | None, state: RecurrentState, dtype: Dtype
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...], bool]:
    """The pools, how the operations find rows in them (index, query_start, fresh), and whether this is a decode.

    Without a cache each sequence begins with a state of its own, which nobody keeps.
    """
    if isinstance(step, Step):
        assert cache is not None
        first = jnp.minimum(step.query_start[:-1], step.tokens.shape[0] - 1)
        return cache.pools, (cache.index, step.query_start, step.positions[first] == 0), step.decode
    assert cache is None
    if isinstance(step, DenseStep):
        query_start = jnp.arange(step.batch + 1, dtype=jnp.int32) * (step.tokens.shape[0] // step.batch)
    else:
        query_start = step.query_start
    rows = query_start.shape[0] - 1
    pools = tuple(jnp.zeros((rows, *shape), name or dtype) for shape, name in state.arrays)
    return pools, (jnp.arange(rows, dtype=jnp.int32), query_start, jnp.ones(rows, jnp.bool_)), False


def _end(cache: StateCache | None, *pools: jax.Array) -> StateCache | None:
    return None if cache is None else replace(cache, pools=pools)


class MambaMixer(nnx.Module):
    """A state per channel, whose time steps, B and C come from the convolved channels themselves."""

    def __init__(self, sizes: Mamba, size: int, dtype: Dtype, *, std: float, out_std: float):
        inner, rank, state = sizes.inner_size, sizes.rank, sizes.state_size
        self.state = RecurrentState((((inner, sizes.conv_size - 1), None), ((inner, state), "float32")))
        self.in_proj = Linear(size, (inner, inner), dtype, axes=("embed", "mlp"), bias=sizes.bias, std=std)
        self.conv = Convolution(inner, sizes.conv_size, dtype, bias=sizes.conv_bias, activation="silu")
        self.x_proj = Linear(inner, (rank, state, state), dtype, axes=("mlp", "rank"), std=inner**-0.5)
        self.dt_norm, self.b_norm, self.c_norm = (
            None if sizes.norm_class is None else sizes.norm_class(width, sizes.norm_eps, dtype)
            for width in (rank, state, state)
        )
        self.dt_proj = Linear(rank, inner, dtype, axes=("rank", "mlp"), std=rank**-0.5)
        # Float32, since bfloat16 would round how fast states decay.
        self.dt_bias = Parameter((inner,), jnp.float32, axes=("mlp",), init=_TimeSteps())
        self.A_log = Parameter((inner, state), jnp.float32, axes=("mlp", "state"), init=_LogCount())
        self.D = Parameter((inner,), jnp.float32, axes=("mlp",), init=Constant(1.0))
        self.out_proj = Linear(inner, size, dtype, axes=("mlp", "embed"), bias=sizes.bias, std=out_std)

    def __call__(self, x: jax.Array, step: AnyStep, cache: StateCache | None) -> tuple[jax.Array, StateCache | None]:
        (conv, states), rows, decode = _begin(step, cache, self.state, x.dtype)
        x, gate = self.in_proj.split(x)
        x, conv = self.conv(x, conv, rows, decode)
        dt, b, c = self.x_proj.split(x)
        if self.dt_norm is not None and self.b_norm is not None and self.c_norm is not None:
            dt, b, c = self.dt_norm(dt), self.b_norm(b), self.c_norm(c)
        dt = self.dt_proj(dt, jnp.float32)
        dt = jax.nn.softplus(dt + broadcast(self.dt_bias[...].astype(jnp.float32), dt))
        decay = -jnp.exp(self.A_log[...].astype(jnp.float32))
        y, states = selective_scan(x, dt, decay, b, c, self.D[...], states, *rows, decode=decode)
        return self.out_proj(_gated(y, gate).astype(x.dtype)), _end(cache, conv, states)


class Mamba2Mixer(nnx.Module):
    """A state per head, whose decay is one number for all its channels; the convolution runs over B and C too."""

    def __init__(self, sizes: Mamba2, size: int, dtype: Dtype, *, std: float, out_std: float):
        self.sizes = sizes
        inner, heads, shared = sizes.inner_size, sizes.num_heads, sizes.groups * sizes.state_size
        self.state = RecurrentState(
            (
                ((inner + 2 * shared, sizes.conv_size - 1), None),
                ((heads, sizes.head_dim, sizes.state_size), "float32"),
            )
        )
        self.in_proj = Linear(
            size, (inner, inner + 2 * shared, heads), dtype, axes=("embed", "mlp"), bias=sizes.bias, std=std
        )
        self.conv = Convolution(inner + 2 * shared, sizes.conv_size, dtype, bias=sizes.conv_bias, activation="silu")
        # Float32, since bfloat16 would round how fast states decay.
        self.dt_bias = Parameter((heads,), jnp.float32, axes=("heads",), init=_TimeSteps())
        self.A_log = Parameter((heads,), jnp.float32, axes=("heads",), init=_LogCount())
        self.D = Parameter((heads,), jnp.float32, axes=("heads",), init=Constant(1.0))
        self.norm = GroupRMSNorm(inner, sizes.norm_groups, sizes.norm_eps, dtype) if sizes.norm_groups else None
        self.out_proj = Linear(inner, size, dtype, axes=("mlp", "embed"), bias=sizes.out_bias, std=out_std)

    def __call__(self, x: jax.Array, step: AnyStep, cache: StateCache | None) -> tuple[jax.Array, StateCache | None]:
        (conv, states), rows, decode = _begin(step, cache, self.state, x.dtype)
        tokens, sizes = x.shape[0], self.sizes
        shared = sizes.groups * sizes.state_size
        borders = (sizes.inner_size, sizes.inner_size + shared)
        gate, x, dt = self.project(x)
        x, conv = self.conv(x, conv, rows, decode)
        x, b, c = jnp.split(x, borders, axis=-1)
        x = x.reshape(tokens, sizes.num_heads, sizes.head_dim)
        b, c = (part.reshape(tokens, sizes.groups, sizes.state_size) for part in (b, c))
        dt = jax.nn.softplus(dt.astype(jnp.float32) + broadcast(self.dt_bias[...].astype(jnp.float32), dt))
        dt = jnp.clip(dt, *sizes.time_step_limit)
        decay = -jnp.exp(self.A_log[...].astype(jnp.float32))
        y, states = ssd(x, dt, decay, b, c, self.D[...], states, *rows, decode=decode)
        y = y.reshape(tokens, sizes.inner_size)
        if self.norm is None:
            y = _gated(y, gate)
        elif sizes.norm_before_gate:
            y = _gated(self.norm(y), gate)
        else:
            y = self.norm(_gated(y, gate))
        return self.out_proj(y.astype(x.dtype)), _end(cache, conv, states)

    def project(self, x: jax.Array) -> list[jax.Array]:
        """x [T, E] -> the gate [T, I], what is convolved (channels, B and C) [T, I + 2 * G * S], time steps [T, H]."""
        sizes = self.sizes
        if sizes.in_factor != 1.0:
            x = (x.astype(jnp.float32) * sizes.in_factor).astype(x.dtype)
        if sizes.factors == (1.0,) * 5:
            return self.in_proj.split(x)
        shared = sizes.groups * sizes.state_size
        widths = (sizes.inner_size, sizes.inner_size, shared, shared, sizes.num_heads)
        factors = jnp.repeat(
            jnp.asarray(sizes.factors, jnp.float32), jnp.asarray(widths), total_repeat_length=sum(widths)
        )
        made = self.in_proj(x, jnp.float32)
        return jnp.split((made * broadcast(factors, made)).astype(x.dtype), self.in_proj.borders, axis=-1)


class ShortConvMixer(nnx.Module):
    """c * convolution(b * x), the three of them projections of the input."""

    def __init__(self, sizes: ShortConv, size: int, dtype: Dtype, *, std: float, out_std: float):
        self.state = RecurrentState((((size, sizes.conv_size - 1), None),))
        self.in_proj = Linear(size, (size, size, size), dtype, axes=("embed", "mlp"), bias=sizes.bias, std=std)
        self.conv = Convolution(size, sizes.conv_size, dtype, bias=sizes.bias, activation=None)
        self.out_proj = Linear(size, size, dtype, axes=("mlp", "embed"), bias=sizes.bias, std=out_std)

    def __call__(self, x: jax.Array, step: AnyStep, cache: StateCache | None) -> tuple[jax.Array, StateCache | None]:
        (conv,), rows, decode = _begin(step, cache, self.state, x.dtype)
        b, c, x = self.in_proj.split(x)
        y, conv = self.conv(b * x, conv, rows, decode)
        return self.out_proj(c * y), _end(cache, conv)


Mixer = MambaMixer | Mamba2Mixer | ShortConvMixer


def make_mixer(sizes: StateSpace, size: int, dtype: Dtype, *, std: float, out_std: float) -> Mixer:
    """The mixer of these sizes for a model of `size`. std, out_std: of random weights into and out of it."""
    if isinstance(sizes, Mamba):
        return MambaMixer(sizes, size, dtype, std=std, out_std=out_std)
    if isinstance(sizes, Mamba2):
        return Mamba2Mixer(sizes, size, dtype, std=std, out_std=out_std)
    return ShortConvMixer(sizes, size, dtype, std=std, out_std=out_std)


def _gated(x: jax.Array, gate: jax.Array) -> jax.Array:
    """x * silu(gate), both [T, C], in float32."""
    return x.astype(jnp.float32) * jax.nn.silu(gate.astype(jnp.float32))
