"""What a program takes beside its arguments, reckoned from its trace: nothing is compiled, no device is asked.

The trace is walked in order with every array given a buffer from where it is made to where it is last used. What XLA
does to that is taken into account where it decides the sum: elementwise operations fuse into whatever reads them and
take no buffer of their own, and an update, or a loop's carry, takes the place of the operand that ends there.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

SHARE = 1.5
"""Of what is reckoned: XLA fuses less than it could, and its order is not the trace's. On a CPU programs of several
families took 0.3 to 1.54 times what is reckoned."""
SLACK = 256 << 20
"""Libraries' workspaces, and what the allocator loses between buffers."""

_VIEWS = {"reshape", "squeeze", "expand_dims", "freeze", "ref", "new_ref", "bitcast_convert_type"}
_FUSED = {
    "abs", "add", "and", "broadcast_in_dim", "cbrt", "ceil", "clamp", "concatenate", "convert_element_type", "copy",
    "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "iota", "is_finite", "le",
    "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pad", "pow", "rem", "rev",
    "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "slice",
    "sqrt", "square", "stop_gradient", "sub", "tanh", "transpose", "xor",
}  # fmt: skip
_READS_FUSED = {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin"}
_IN_PLACE = {"scatter", "scatter-add", "scatter_add", "dynamic_update_slice", "while", "jit", "pjit"}


def program_bytes(function: Callable[..., Any], arguments: Sequence[Any], donated: Collection[int] = ()) -> int:
    """Bytes of temporaries and new outputs of a program, from above in all but odd cases.

    arguments: abstract. donated: places of those whose buffers the program may take.
    """
    trace = jax.jit(function).trace(*arguments)
    owned = [place in donated for place, argument in enumerate(arguments) for _ in jax.tree.leaves(argument)]
    return int(_peak(trace.jaxpr.jaxpr, owned) * SHARE) + SLACK


@dataclass(eq=False)
class _Buffer:
    """holders: live arrays that need it. owned: it may be freed, or taken for another array, when there are none."""

    size: int
    owned: bool
    holders: int = 0


class _Walk:
    """One pass over a jaxpr. live: bytes beyond those there were at its start; peak: the most there ever were."""

    def __init__(self, jaxpr: Jaxpr, owned: Sequence[bool]):
        self.live = self.peak = 0
        self._uses = Counter(x for equation in jaxpr.eqns for x in equation.invars if isinstance(x, Var))
        self._uses.update(x for x in jaxpr.outvars if isinstance(x, Var))
        self._buffers: dict[Var, list[_Buffer]] = {}
        self._fused: set[Var] = set()  # arrays that exist only within what reads them
        for x, mine in zip(jaxpr.invars, owned, strict=True):
            self._hold(x, [_Buffer(_size(x), mine)])
        for x in jaxpr.constvars:
            self._hold(x, [_Buffer(_size(x), False)])
        for equation in jaxpr.eqns:
            self._step(equation)
        for result in jaxpr.outvars:
            if isinstance(result, Var):
                self._materialise(result)

    def _step(self, equation: Any) -> None:
        name, read = equation.primitive.name, [x for x in equation.invars if isinstance(x, Var)]
        if name in _VIEWS and len(equation.outvars) == 1 and read:
            (out,) = equation.outvars
            self._hold(out, self._buffers[read[0]])
            if read[0] in self._fused:
                self._fused.add(out)
        elif name in _FUSED:
            sources = list(dict.fromkeys(buffer for x in read for buffer in self._buffers[x]))
            for out in equation.outvars:
                self._hold(out, sources)
                self._fused.add(out)
        else:
            if name not in _READS_FUSED:
                for x in read:
                    self._materialise(x)
            ending = self._ending(read)
            self.peak = max(self.peak, self.live + _inner(equation, ending))
            free = list(dict.fromkeys(b for x in ending for b in self._buffers[x]))
            for out in equation.outvars:
                size = _size(out)
                taken = next((b for b in free if b.size == size), None) if _may_take(name) else None
                if taken is not None:
                    free.remove(taken)
                self._hold(out, [taken or self._new(size)])
        for x in read:
            self._uses[x] -= 1
            if not self._uses[x]:
                self._drop(x)
        for out in equation.outvars:
            if not self._uses[out]:
                self._drop(out)

    def _ending(self, read: Sequence[Var]) -> set[Var]:
        """Operands whose buffers nothing needs after this equation."""
        here = Counter(read)
        last = {x for x in here if self._uses[x] == here[x]}
        held = Counter(buffer for x in last for buffer in self._buffers[x])
        return {x for x in last if all(b.owned and b.holders == held[b] for b in self._buffers[x])}

    def _hold(self, x: Any, buffers: Sequence[_Buffer]) -> None:
        self._buffers[x] = list(buffers)
        for buffer in buffers:
            buffer.holders += 1

    def _drop(self, x: Var) -> None:
        for buffer in self._buffers.pop(x):
            buffer.holders -= 1
            if not buffer.holders and buffer.owned:
                self.live -= buffer.size

    def _materialise(self, x: Var) -> None:
        if x in self._fused:
            self._fused.discard(x)
            new = self._new(_size(x))
            self._drop(x)
            self._hold(x, [new])

    def _new(self, size: int) -> _Buffer:
        self.live += size
        self.peak = max(self.peak, self.live)
        return _Buffer(size, True)


def _peak(jaxpr: Jaxpr, owned: Sequence[bool]) -> int:
    return _Walk(jaxpr, owned).peak


def _inner(equation: Any, ending: Collection[Var]) -> int:
    """The most bytes that the bodies of an equation take while it runs, beyond what is live before it."""
    params, owned = equation.params, [isinstance(x, Var) and x in ending for x in equation.invars]
    match equation.primitive.name:
        case "while":
            body = params["body_jaxpr"].jaxpr
            carried = len(body.outvars)
            return _peak(body, [False] * (len(body.invars) - carried) + [True] * carried)
        case "scan":
            body = params["jaxpr"].jaxpr
            slices = sum(
                _size(x) for x, whole in zip(body.invars, equation.invars, strict=True) if _size(x) != _size(whole)
            )
            return sum(_size(x) for x in equation.outvars) + slices + _peak(body, [False] * len(body.invars))
        case "cond":
            return max(_peak(branch.jaxpr, owned[1:]) for branch in params["branches"])
        case "jit" | "pjit" | "closed_call" | "custom_jvp_call" | "custom_vjp_call" | "remat2" | "checkpoint":
            found = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
            body = found.jaxpr if isinstance(found, ClosedJaxpr) else found
            return _peak(body, owned) if len(body.invars) == len(owned) else 0
    return 0  # a kernel's body lives in registers and shared memory


def _may_take(name: str) -> bool:
    """Whether an operation's result may lie where an operand of the same size ends: kernels say so of their pools."""
    return name in _IN_PLACE or "call" in name


def _size(x: Any) -> int:
    if isinstance(x, Literal) or not hasattr(x.aval, "shape"):
        return 0
    return math.prod(x.aval.shape) * x.aval.dtype.itemsize
