"""Logits processors: what may change a row's logits before a token is drawn, ours and yours.

A processor is a class of pure JAX functions over a batch of rows. It declares what one row's parameters and one
row's state look like (fixed shapes), reads a request's arguments on the host, and is compiled into the programs
that serve requests with penalties, biases and the like (the `full` variant). Batches in which no request uses a
processor run programs that hold none of it.

    class Damp(LogitsProcessor):
        \"\"\"Each drawn token is less likely for a while: {"strength": number}.\"\"\"

        name = "damp"

        def __init__(self, vocab_size):
            super().__init__(vocab_size)
            self.parameters = {"strength": np.float32(0)}
            self.state = {"heat": np.zeros(vocab_size, np.float32)}

        def parse(self, argument):
            return {"strength": argument["strength"]}

        def apply(self, logits, params, state, num_drawn):
            return logits - params["strength"][:, None] * state["heat"]

        def update(self, params, state, tokens, drawn):
            heat = state["heat"] / 2
            return {"heat": heat.at[jnp.arange(len(tokens)), tokens].add(1)}

It is named when the engine starts, `jaxllm serve --logits-processor package.module:Damp` or
`LLM(logits_processors=[Damp])`, and used by the requests that bring it an argument:
`SamplingParams(logits_processors={"damp": {"strength": 2.0}})`; over HTTP and gRPC the same map is JSON.
`scripts/damp_repeats.py` is a whole example.
"""

import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.core import Request
from jaxllm.errors import ConfigError, RequestError

Arrays = Mapping[str, Any]
"""Named arrays: one row's on the host, or those of B rows, stacked along a first axis, in traced functions."""

MAX_PROCESSORS = 31
"""As many as one int32 has bits to say which of them a row uses."""


class LogitsProcessor:
    """One change to the logits, for the rows whose requests ask for it. Subclass it; `apply` alone is a must.

    Attributes:
        name: what requests call it by.
        parameters: one row's parameters by name, whose values give the shapes and types (float32, int32, bool).
        state: one row's state before its first token, likewise; any type.
        reads_prompt: `update` is told of the prompt's tokens, too.
    """

    name: ClassVar[str]
    parameters: Arrays
    state: Arrays
    reads_prompt: ClassVar[bool] = False

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.parameters = {}
        self.state = {}

    # --- on the host ---

    def read(self, request: Request) -> Arrays | None:
        """One row's parameters for this request; None if it does not use the processor."""
        argument = request.params.logits_processors.get(self.name)
        return None if argument is None else self.parse(argument)

    def parse(self, argument: Any) -> Arrays:
        """One row's parameters from a request's argument, any JSON value but null. Any error refuses the request."""
        raise NotImplementedError(f"{type(self).__name__} takes no arguments: it lacks `parse`")

    def until(self, request: Request) -> float:
        """Tokens drawn from which on the processor changes nothing more for this request, so that it need not run."""
        return math.inf

    # --- traced, and compiled into programs ---

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        """The changed logits [B, V] float32 of B rows; what it makes of rows that do not use it is not looked at.

        num_drawn: [B] int32, tokens drawn so far.
        """
        raise NotImplementedError

    def update(self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array) -> Arrays:
        """The state of B rows after one more token each. tokens: [B] int32. drawn: [B] bool, False in a prompt."""
        return state

    def feed(
        self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array, start: jax.Array, stop: jax.Array
    ) -> Arrays:
        """The state of one row (B = 1) after tokens [start, stop) of `tokens` [N]: `update` in bulk.

        Called where a request gets its slot, for its prompt (if `reads_prompt`) and for what was drawn before a
        preemption. Override it where that can be done in one go: this loop takes a moment per token.
        """
        if not state:
            return state

        def one(i: jax.Array, state: Arrays) -> Arrays:
            return dict(self.update(params, state, tokens[i][None], drawn[i][None]))

        return jax.lax.fori_loop(start, stop, one, dict(state))


class ProcessorState(NamedTuple):
    """What the device keeps of S slots and the sink.

    arguments: [S + 1, A] int32, every processor's parameters one behind the other, other types bit-cast.
    states: per processor its arrays, each [S + 1, ...].
    """

    arguments: jax.Array
    states: tuple[Arrays, ...]


class Rows(NamedTuple):
    """The same of B rows. active: [B] int32, bit i says that the row uses processor i."""

    active: jax.Array
    params: tuple[Arrays, ...]
    states: tuple[Arrays, ...]


class Reading(NamedTuple):
    """A request as the processors see it. active, arguments: a row's. until: tokens drawn from which on none acts."""

    active: int
    arguments: np.ndarray
    until: float


class Processors:
    """The processors of an engine, in the order in which they act.

    Attributes:
        width: int32 numbers that a row's parameters take.
    """

    def __init__(self, processors: Sequence[LogitsProcessor]):
        names = [processor.name for processor in processors]
        if len(set(names)) < len(names) or len(names) > MAX_PROCESSORS:
            raise ConfigError(
                f"logits_processors: {', '.join(names)}: names must differ, and there can be {MAX_PROCESSORS} at most"
            )
        self._processors = tuple(processors)
        self._known = [processor.name for processor in processors if type(processor).read is LogitsProcessor.read]
        self._neutral = [
            {name: np.asarray(value) for name, value in processor.parameters.items()} for processor in processors
        ]
        for processor, neutral in zip(processors, self._neutral, strict=True):
            for name, value in neutral.items():
                if value.dtype not in (np.float32, np.int32, np.bool_):
                    raise ConfigError(
                        f"logits_processors: {processor.name}.parameters[{name!r}] is {value.dtype}: "
                        "must be float32, int32 or bool"
                    )
        self.width = sum(value.size for neutral in self._neutral for value in neutral.values())

    # --- on the host ---

    def read(self, request: Request) -> Reading:
        """Raises RequestError for arguments that a processor does not take, or that no processor here takes."""
        for name in request.params.logits_processors:
            if name not in self._known:
                near = difflib.get_close_matches(name, self._known, 1)
                known = ", ".join(self._known) or "none; name them with --logits-processor"
                hint = f"did you mean {near[0]!r}?" if near else f"those of this engine: {known}"
                raise RequestError(f"logits_processors: there is no {name!r}; {hint}", "logits_processors")
        active, until = 0, 0.0
        packed: list[np.ndarray] = []
        for i, (processor, neutral) in enumerate(zip(self._processors, self._neutral, strict=True)):
            values = self._values(processor, neutral, request)
            if values is not None:
                active |= 1 << i
                until = max(until, processor.until(request))
            packed += map(_pack, (values or neutral).values())
        return Reading(active, np.concatenate([np.zeros(0, np.int32), *packed]), until)

    def reads_prompt(self, active: int) -> bool:
        """Whether one of the processors in `active` wants to know the prompt."""
        return any(active >> i & 1 and processor.reads_prompt for i, processor in enumerate(self._processors))

    def _values(
        self, processor: LogitsProcessor, neutral: Mapping[str, np.ndarray], request: Request
    ) -> dict[str, np.ndarray] | None:
        try:
            given = processor.read(request)
            if given is None:
                return None
            if unknown := set(given) - set(neutral):
                raise ValueError(f"parse yields {sorted(unknown)}, and its parameters are {sorted(neutral)}")
            values = {}
            for name, value in neutral.items():
                array = np.asarray(given.get(name, value))
                if not np.can_cast(array.dtype, value.dtype, "same_kind") and array.dtype.kind not in "iub":
                    raise ValueError(f"{name} is {array.dtype}, and it must be {value.dtype}")
                values[name] = np.broadcast_to(array.astype(value.dtype), value.shape)
            return values
        except RequestError:
            raise
        except Exception as error:  # whatever a user's own code raises at a client's argument
            raise RequestError(
                f"logits_processors: {processor.name}: {type(error).__name__}: {error}", "logits_processors"
            ) from error

    # --- traced ---

    def new_state(self, slots: int) -> ProcessorState:
        states = tuple(
            {name: jnp.zeros((slots, *np.shape(value)), jnp.asarray(value).dtype) for name, value in one.state.items()}
            for one in self._processors
        )
        return ProcessorState(jnp.zeros((slots, self.width), jnp.int32), states)

    def gather(self, state: ProcessorState, slot: jax.Array, active: jax.Array) -> Rows:
        """Those of slots [B] int32."""
        states = jax.tree.map(lambda x: x[slot], state.states)
        return Rows(active, self._unpack(state.arguments[slot]), states)

    def apply(self, rows: Rows, logits: jax.Array, num_drawn: jax.Array) -> jax.Array:
        """Logits [B, V] as every row's processors, one after the other, leave them."""
        for i, (processor, params, state) in enumerate(zip(self._processors, rows.params, rows.states, strict=True)):
            uses = (rows.active >> i) & 1 != 0
            logits = jnp.where(uses[:, None], processor.apply(logits, params, state, num_drawn), logits)
        return logits

    def update(self, rows: Rows, tokens: jax.Array) -> tuple[Arrays, ...]:
        """The states after one more drawn token [B] each."""
        drawn = jnp.ones_like(tokens, jnp.bool_)
        return tuple(
            dict(processor.update(params, state, tokens, drawn)) if state else {}
            for processor, params, state in zip(self._processors, rows.params, rows.states, strict=True)
        )

    def scatter(self, state: ProcessorState, slot: jax.Array, states: tuple[Arrays, ...]) -> ProcessorState:
        """Writes the states of B rows back to slots [B]."""
        return state._replace(states=jax.tree.map(lambda old, new: old.at[slot].set(new), state.states, states))

    def seed(
        self, state: ProcessorState, slot: jax.Array, clear: jax.Array, arguments: jax.Array, tokens: jax.Array,
        drawn: jax.Array, count: jax.Array,
    ) -> ProcessorState:  # fmt: skip
        """Sets one slot's arguments [A], and feeds its states with `count` of tokens [N], those of the prompt first.

        slot, count: scalars. clear: scalar bool, begin anew. drawn: [N] bool.
        """
        params = self._unpack(arguments[None])
        in_prompt = jnp.sum(~drawn & (jnp.arange(len(tokens), dtype=jnp.int32) < count), dtype=jnp.int32)
        states = []
        for processor, own_params, own_state in zip(self._processors, params, state.states, strict=True):
            old = {
                name: jnp.where(clear, jnp.asarray(processor.state[name])[None], array[slot][None])
                for name, array in own_state.items()
            }
            start = jnp.int32(0) if processor.reads_prompt else in_prompt
            new = processor.feed(own_params, old, tokens, drawn, start, count)
            states.append({name: array.at[slot].set(new[name][0]) for name, array in own_state.items()})
        return ProcessorState(state.arguments.at[slot].set(arguments), tuple(states))

    def _unpack(self, packed: jax.Array) -> tuple[Arrays, ...]:
        """packed: [B, A] int32."""
        params, at = [], 0
        for neutral in self._neutral:
            own: dict[str, jax.Array] = {}
            for name, value in neutral.items():
                own[name] = _unpack(packed[:, at : at + value.size], value)
                at += value.size
            params.append(own)
        return tuple(params)


def load(what: str | type, vocab_size: int) -> LogitsProcessor:
    """The processor that `package.module:Class`, or a class itself, names. Raises ConfigError."""
    cls: Any = what
    if isinstance(what, str):
        module, _, name = what.partition(":")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"logits_processors: {what!r} cannot be had ({error}): write package.module:Class, importable here"
            ) from error
    if not (isinstance(cls, type) and issubclass(cls, LogitsProcessor)):
        raise ConfigError(f"logits_processors: {what!r} is no subclass of jaxllm.LogitsProcessor")
    try:
        processor: LogitsProcessor = cls(vocab_size)
    except Exception as error:
        raise ConfigError(f"logits_processors: {what!r}({vocab_size}) failed: {error!r}") from error
    if lacking := _lacking(processor):
        raise ConfigError(f"logits_processors: {what!r} {lacking}")
    return processor


def _lacking(processor: LogitsProcessor) -> str:
    """What a processor is not whole without; nothing of one that is."""
    if not isinstance(getattr(processor, "name", None), str):
        return "has no `name` for requests to call it by"
    for name in ("parameters", "state"):
        if not isinstance(getattr(processor, name, None), dict):
            return f"has no dictionary `{name}`; its __init__ is to call super().__init__(vocab_size), which makes one"
    cls, base = type(processor), LogitsProcessor
    if cls.apply is base.apply:
        return "lacks `apply`, which changes the logits"
    if cls.parse is base.parse and cls.read is base.read:
        return "lacks `parse`, which reads a request's argument"
    return ""


def _pack(value: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(value).ravel()
    return flat.view(np.int32) if flat.dtype == np.float32 else flat.astype(np.int32)


def _unpack(packed: jax.Array, like: np.ndarray) -> jax.Array:
    """packed: [B, n] int32; an array [B, ...] of like's shape and type."""
    array = packed.reshape(packed.shape[0], *like.shape)
    if like.dtype == np.float32:
        return jax.lax.bitcast_convert_type(array, jnp.float32)
    return array != 0 if like.dtype == np.bool_ else array
