"""From logits to tokens on the device: how a program of several steps ends each, and programs that draw what a forward
program left.

Apart, they are few: each size of a forward program does for every way to draw. And a mask says which tokens a row may
draw next, which often follows from the token drawn last, which the host does not know when it submits a step. So the
forward program runs while the host collects the step before, and fills the masks; the draw program follows with them,
and the device has not waited.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import LogprobsMode
from jaxllm.runner.state import Column, State, row_params
from jaxllm.sampling import Processors, Rows, TokenLogprobs, confine, draw, greedy, narrow, token_logprobs

Variant = Literal["greedy", "sampled", "full", "forward", "scored"]
VARIANTS: tuple[Variant, ...] = ("greedy", "sampled", "full", "forward", "scored")
"""What a program can do for its rows, each serving those before.

greedy: argmax. sampled: temperature, top-k, top-p, min-p. full: logits processors and log probabilities. Of programs
that draw nothing, as the least draw program that serves the rows follows: forward; scored (extend only), which yields
log probabilities of the prompt's tokens as well.
"""


NOTHING = -1
"""In place of a token, where every one of them is forbidden."""


class Drawn(NamedTuple):
    """tokens: [B] int32, NOTHING where none may be drawn. logprobs: None unless the variant reports them. states: the
    processors', after the tokens."""

    tokens: jax.Array
    logprobs: TokenLogprobs | None
    states: tuple[Any, ...]


class Drawing:
    """Draws for rows of slots. sink: the slot of padding rows."""

    def __init__(self, processors: Processors, num_logprobs: int, logprobs_mode: LogprobsMode, sink: int):
        self._processors = processors
        self._num_logprobs = num_logprobs
        self._mode = logprobs_mode
        self._sink = sink

    def gather(self, variant: Variant, state: State, slot: jax.Array, rows: jax.Array) -> Rows:
        """What the logits processors know of the slots [B] with their rows [B, WIDTH]; nothing where none can run."""
        active = rows[:, Column.PROCESSORS]
        if variant in ("greedy", "sampled"):
            return Rows(active, (), ())
        return self._processors.gather(state.processors, slot, active)

    def draw(
        self, variant: Variant, logits: jax.Array, rows: jax.Array, processing: Rows, at: jax.Array,
        masks: jax.Array | None = None,
    ) -> Drawn:  # fmt: skip
        """The tokens at positions `at` [B] of the rows [B, WIDTH], from logits [B, V].

        masks: [B, W] int32, the tokens that may be drawn, whatever the processors make of their logits.
        """
        if variant in ("greedy", "sampled"):
            allowed = logits if masks is None else confine(logits, masks, logits)
            if variant == "greedy":
                return Drawn(greedy(allowed), None, ())
            return Drawn(draw(allowed, row_params(rows), at), None, ())
        params = row_params(rows)
        processed = self._processors.apply(processing, logits, at - rows[:, Column.PROMPT_LEN])
        if masks is not None:
            processed = confine(processed, masks, logits)
        tokens = draw(processed, params, at)
        told = narrow(processed, params) if self._mode.startswith("processed") else logits
        logprobs, states = self.logprobs(told, tokens), self._processors.update(processing, tokens)
        forbidden = jnp.take_along_axis(processed, tokens[:, None], axis=1)[:, 0] == -jnp.inf
        return Drawn(jnp.where(forbidden, jnp.int32(NOTHING), tokens), logprobs, states)

    def logprobs(self, logits: jax.Array, tokens: jax.Array) -> TokenLogprobs:
        """What is reported of tokens [B] drawn, or given, where the logits are [B, V]."""
        return token_logprobs(logits, tokens, self._num_logprobs, self._mode.endswith("logprobs"))

    def program(self, variant: Variant) -> Callable[..., tuple[State, jax.Array]]:
        """The function of (state, masks) that draws what a forward program of R rows left, in the slots that it names;
        see Undrawn. masks: [R, W] int32."""

        def program(state: State, masks: jax.Array) -> tuple[State, jax.Array]:
            logits, slot, at, draws = state.undrawn.read(len(masks))
            rows = state.rows[slot]
            drawn = self.draw(variant, logits, rows, self.gather(variant, state, slot, rows), at, masks)
            state = state._replace(rows=state.rows.at[slot].set(settle(rows, drawn.tokens, at, draws)))
            if drawn.states:  # of rows that draw nothing they are none of the slot's
                slot = jnp.where(draws, slot, jnp.int32(self._sink))
                state = state._replace(processors=self._processors.scatter(state.processors, slot, drawn.states))
            return state, pack([drawn.tokens, draws, drawn.logprobs])

        program.__name__ = program.__qualname__ = f"draw_{variant}"
        return program


def settle(rows: jax.Array, tokens: jax.Array, at: jax.Array, draws: jax.Array) -> jax.Array:
    """Rows [B, WIDTH] after tokens [B] were drawn at positions `at` [B], where `draws` [B]."""
    ended = draws & ends(rows, tokens, at)
    new = rows.at[:, Column.LAST_TOKEN].set(jnp.where(draws, tokens, rows[:, Column.LAST_TOKEN]))
    new = new.at[:, Column.POSITION].set(jnp.where(draws, at, rows[:, Column.POSITION]))
    return new.at[:, Column.DONE].set(rows[:, Column.DONE] | ended.astype(jnp.int32))


def ends(rows: jax.Array, tokens: jax.Array, at: jax.Array) -> jax.Array:
    """Whether the tokens at positions `at` end their requests: by limit, or by a stop id once min_tokens are out."""
    total = at + 1
    stops = (rows[:, Column.STOP_IDS :] == tokens[:, None]).any(axis=1)
    enough = total - rows[:, Column.PROMPT_LEN] >= rows[:, Column.MIN_TOKENS]
    return (stops & enough) | (total >= rows[:, Column.LIMIT])


def pack(out: Any) -> jax.Array:
    """All leaves of `out` as one int32 array, floats bit-cast."""

    def flat(x: jax.Array) -> jax.Array:
        return (jax.lax.bitcast_convert_type(x, jnp.int32) if x.dtype == jnp.float32 else x.astype(jnp.int32)).ravel()

    leaves = jax.tree.leaves(out)
    return jnp.concatenate([flat(x) for x in leaves]) if leaves else jnp.zeros(0, jnp.int32)
