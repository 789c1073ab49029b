"""What runs on the device: the functions that are compiled, one per shape and variant.

Every program takes (weights, cache, state, packed) and returns (cache, state, out): weights are the model's flat
leaves, cache is the flat tuple of page pools, layer after layer (k0, v0, k1, v1, ...), packed and out are one int32
array each. Cache and state are donated. Layouts of packed and out stand in packing.py.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.config import LogprobsMode
from jaxllm.core import CacheSpec, LayerSpecs, all_specs, group_of, pages_of
from jaxllm.layers.cache import Cache, CrossCache, LayerCache, PagedCache, StateCache
from jaxllm.layers.step import DenseStep, EncodeStep, Step
from jaxllm.runner.drawing import Drawing, Variant, ends, pack
from jaxllm.runner.packing import DecodeLayout, EncodeLayout, ExtendLayout, RowFlag, SeedLayout, turned
from jaxllm.runner.state import FIRST_PARAM, Column, State, new_state
from jaxllm.runner.tables import BlockTables
from jaxllm.sampling import Processors, TokenLogprobs

Leaves = tuple[jax.Array, ...]
SCORE_BLOCK = 256
"""Prompt tokens whose logits exist at once while they are scored."""


@dataclass(frozen=True, order=True)
class ProgramKey:
    """Names a program. size is tokens (extend, encode, seed), rows (decode, draw) or page pairs (copy)."""

    kind: Literal["extend", "decode", "draw", "encode", "copy", "seed"]
    size: int
    variant: Variant = "greedy"
    steps: int = 1

    @property
    def forward(self) -> bool:
        """The program ends with logits, and a draw program makes tokens of them, under masks that the host may have
        made meanwhile."""
        return self.variant in ("forward", "scored")

    def __str__(self) -> str:
        steps = f" x {self.steps} steps" if self.kind == "decode" else ""
        unit = {"decode": "rows", "draw": "rows", "copy": "pages"}.get(self.kind, "tokens")
        drawing = self.kind in ("extend", "decode", "draw") and self.variant != "forward"
        return f"{self.kind} of {self.size} {unit}{steps}{f', {self.variant}' if drawing else ''}"


@dataclass(frozen=True)
class Geometry:
    """The sizes all programs share."""

    max_num_seqs: int
    page_size: int
    tables: BlockTables
    vocab_size: int
    num_logprobs: int
    logprobs_mode: LogprobsMode
    processors: Processors
    specs: tuple[LayerSpecs, ...]

    @property
    def sink(self) -> int:
        """The slot of padding rows."""
        return self.max_num_seqs

    def extend_rows(self, tokens: int) -> int:
        return min(tokens, self.max_num_seqs)

    def state(self) -> State:
        return new_state(self.max_num_seqs, self.tables.width, self.vocab_size, self.processors)

    @functools.cached_property
    def state_shapes(self) -> State:
        """What `state` makes, abstract."""
        shapes: State = jax.eval_shape(self.state)
        return shapes

    def cache(self, num_pages: Sequence[int], dtype: Any) -> Leaves:
        """Empty pools, those of each layer in turn, of num_pages pages by cache group."""
        return tuple(jnp.zeros(pool.shape, pool.dtype) for pool in self.cache_shapes(num_pages, dtype))

    def cache_shapes(self, num_pages: Sequence[int], dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What `cache` makes, abstract."""
        return tuple(
            jax.ShapeDtypeStruct((num_pages[self._group(spec)], *shape), jnp.dtype(name or dtype))
            for spec in all_specs(self.specs)
            for shape, name in pages_of(spec, self.page_size)
        )

    def page_bytes(self, group: int, dtype: Any) -> int:
        """Of one page in all pools of a cache group."""
        specs = [spec for spec in all_specs(self.specs) if self._group(spec) == group]
        pools = [pool for spec in specs for pool in pages_of(spec, self.page_size)]
        return sum(math.prod(shape) * jnp.dtype(name or dtype).itemsize for shape, name in pools)

    def places(
        self, tables: jax.Array, row: jax.Array, position: jax.Array, writes: jax.Array, active: jax.Array,
        source_len: jax.Array,
    ) -> tuple[Cache, ...]:  # fmt: skip
        """By cache group what its layers are given, but for their pools.

        tables: [R, width]; row, position: [T] of each token; writes: [T] whether it is computed, or goes to the sink;
        active: [R] whether the row is; source_len: [R].
        """
        places: list[Cache] = []
        for group, table in zip(self.tables.groups, self.tables.split(tables), strict=True):
            if group.kind == "state":
                places.append(StateCache((), jnp.where(active, table[:, 0], jnp.int32(0))))
            elif group.kind == "source":
                places.append(CrossCache((), table, jnp.where(active, source_len, jnp.int32(0))))
            else:
                write = table[row, position // self.page_size] * self.page_size + position % self.page_size
                places.append(PagedCache((), table, jnp.where(writes, write, jnp.int32(0))))
        return tuple(places)

    def by_layer(self, pools: Leaves, places: Sequence[Cache]) -> tuple[LayerCache, ...]:
        """What each layer is given, from the pools of all."""
        rest = iter(pools)

        def cache(spec: CacheSpec) -> Cache:
            own = tuple(itertools.islice(rest, len(pages_of(spec, self.page_size))))
            return replace(places[self._group(spec)], pools=own)

        return tuple(tuple(map(cache, layer)) if isinstance(layer, tuple) else cache(layer) for layer in self.specs)

    def by_group(self, pools: Leaves) -> list[tuple[int, jax.Array]]:
        """All pools, each with the place of its cache group."""
        groups = [self._group(spec) for spec in all_specs(self.specs) for _ in pages_of(spec, self.page_size)]
        return list(zip(groups, pools, strict=True))

    def _group(self, spec: CacheSpec) -> int:
        return self.tables.groups.index(group_of(spec))


@dataclass(frozen=True)
class FlatModel:
    """An NNX model taken apart once: programs get its leaves as a flat tuple and put it together while tracing."""

    graphdef: nnx.GraphDef
    treedef: Any
    leaves: Leaves = field(repr=False)

    @classmethod
    def of(cls, model: nnx.Module) -> "FlatModel":
        graphdef, state = nnx.split(model)
        leaves, treedef = jax.tree.flatten(state)
        return cls(graphdef, treedef, tuple(leaves))

    def merge(self, leaves: Leaves) -> Any:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


class Programs:
    """Builds the function of each ProgramKey for one model and geometry."""

    def __init__(self, model: FlatModel, geometry: Geometry):
        self.model = model
        self.geometry = geometry
        self.drawing = Drawing(geometry.processors, geometry.num_logprobs, geometry.logprobs_mode, geometry.sink)
        # Programs that differ in their ends only (variant, number of steps) share one trace of the layers.
        self._forward = jax.jit(self._run_model)

    def build(self, key: ProgramKey) -> Callable[[Leaves, Leaves, State, jax.Array], tuple[Leaves, State, jax.Array]]:
        """The function of (weights, cache, state, packed) that `key` names, to be compiled with cache and state
        donated. A draw program is `drawing.program` instead."""
        functions: dict[str, Callable[..., tuple[Leaves, State, jax.Array]]] = {
            "extend": self._extend,
            "decode": self._decode,
            "encode": self._encode,
            "copy": self._copy,
            "seed": self._seed,
        }
        function = functions[key.kind]

        def program(weights: Leaves, cache: Leaves, state: State, packed: jax.Array) -> tuple[Leaves, State, jax.Array]:
            return function(key, weights, cache, state, turned(packed))

        program.__name__ = program.__qualname__ = f"{key.kind}_{key.size}x{key.steps}_{key.variant}"
        return program

    def packed_size(self, key: ProgramKey) -> int:
        """Elements of the packed array that `key`'s program takes."""
        match key.kind:
            case "extend":
                return self.extend_layout(key).size
            case "decode":
                return self.decode_layout(key).size
            case "encode":
                return self.encode_layout(key).size
            case "copy":
                return 3 * key.size
            case "seed":
                return self.seed_layout(key).size
            case "draw":
                raise AssertionError("a draw program takes what a forward program left, and masks")

    def extend_layout(self, key: ProgramKey) -> ExtendLayout:
        rows = self.geometry.extend_rows(key.size)
        return ExtendLayout(rows, self.geometry.tables, key.size, scored=key.variant == "scored")

    def encode_layout(self, key: ProgramKey) -> EncodeLayout:
        return EncodeLayout(self.geometry.extend_rows(key.size), self.geometry.tables, key.size)

    def decode_layout(self, key: ProgramKey) -> DecodeLayout:
        return DecodeLayout(key.size, self.geometry.tables)

    def seed_layout(self, key: ProgramKey) -> SeedLayout:
        return SeedLayout(self.geometry.processors.width, key.size)

    def prompt_logits(self, weights: Leaves, tokens: jax.Array, source: EncodeStep | None) -> jax.Array:
        """Logits [T, V] float32 after each of tokens [T], without a cache. source: what an encoder reads."""
        model = self.model.merge(weights)
        step = DenseStep.of(tokens[None])
        hidden, _ = model(step, None) if source is None else model(step, None, sources=source)
        return model.logits(hidden)

    def _run_model(
        self, weights: Leaves, step: Step, pools: Leaves, places: tuple[Cache, ...]
    ) -> tuple[jax.Array, jax.Array, Leaves]:
        """Logits [R, V] to draw by, behind each row's last token; hidden states and pools as the model leaves them."""
        model = self.model.merge(weights)
        step = replace(step, tail=step.tail and model.heeds_tail)
        hidden, layers = model(step, self.geometry.by_layer(pools, places))
        ends = hidden if step.tail or step.decode else hidden[step.last]
        return model.drawable(model.logits(ends)), hidden, _pools(layers)

    def _extend(
        self, key: ProgramKey, weights: Leaves, cache: Leaves, state: State, packed: jax.Array
    ) -> tuple[Leaves, State, jax.Array]:
        """Computes the given tokens of every row, ragged, and leaves logits of the rows that ask for a token."""
        geometry, layout = self.geometry, self.extend_layout(key)
        head, params, sent, ids, targets = layout.split(packed)
        slot, start, count, flags = head[:, 0], head[:, 1], head[:, 2], head[:, 3]

        old = state.rows[slot]
        done = (old[:, Column.DONE] != 0) & ((flags & RowFlag.FRESH) == 0)
        query_start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count, dtype=jnp.int32)])
        token = jnp.arange(key.size, dtype=jnp.int32)
        row = jnp.searchsorted(query_start[1:], token, side="right", method="compare_all").astype(jnp.int32)
        row = jnp.minimum(row, jnp.int32(layout.rows - 1))
        real = token < query_start[-1]
        position = jnp.where(real, start[row] + token - query_start[row], jnp.int32(0))
        on_device = (flags & RowFlag.ON_DEVICE) != 0
        tables = geometry.tables.expand(sent, key.size)
        # A request that has met its end on the device owns no page any more: what it writes goes to the sink.
        places = geometry.places(
            tables, row, position, real & ~done[row], (count > 0) & ~done, params[:, Column.SOURCE_LEN - FIRST_PARAM]
        )
        step = Step(
            tokens=jnp.where(on_device[row], old[row, Column.LAST_TOKEN], ids),
            positions=position,
            query_start=query_start,
            kv_len=jnp.where(count > 0, start + count, jnp.int32(0)),
            tail=key.variant != "scored" and layout.rows < key.size,
        )
        logits, hidden, cache = self._forward(weights, step, cache, places)
        draws = ((flags & RowFlag.DRAWS) != 0) & ~done
        new = jnp.concatenate([old[:, : Column.DONE], done.astype(jnp.int32)[:, None], params], axis=1)
        state = state._replace(
            rows=state.rows.at[slot].set(new),
            tables=state.tables.at[slot].set(tables),
            undrawn=state.undrawn.write(logits, slot, start + count, draws),
        )
        return cache, state, pack(self._score(weights, hidden, targets) if key.variant == "scored" else ())

    def _decode(
        self, key: ProgramKey, weights: Leaves, cache: Leaves, state: State, packed: jax.Array
    ) -> tuple[Leaves, State, jax.Array]:
        """Draws key.steps tokens for every row that has not met its end, each fed to the next step; a forward program
        leaves the logits of the first one."""
        geometry, size = self.geometry, key.size
        slot, columns, pages = self.decode_layout(key).split(packed)
        tables = state.tables.at[jnp.tile(slot, len(columns)), columns.ravel()].set(pages.ravel(), mode="drop")
        rows, own = state.rows[slot], tables[slot]
        ramp = jnp.arange(size, dtype=jnp.int32)
        position = rows[:, Column.POSITION]
        done = (rows[:, Column.DONE] != 0) | (slot == geometry.sink)

        def forward(cache: Leaves, last: jax.Array, at: jax.Array, active: jax.Array) -> tuple[jax.Array, Leaves]:
            """Logits [B, V] behind the tokens `last` [B] at positions `at` [B]."""
            places = geometry.places(own, ramp, at, active, active, rows[:, Column.SOURCE_LEN])
            step = Step(
                tokens=last,
                positions=at,
                query_start=jnp.arange(size + 1, dtype=jnp.int32),
                kv_len=jnp.where(active, at + 1, jnp.int32(0)),
                decode=True,
            )
            logits, _, cache = self._forward(weights, step, cache, places)
            return logits, cache

        # The page is looked up at a place within the table even where the row is at its very end.
        if key.forward:
            logits, cache = forward(cache, rows[:, Column.LAST_TOKEN], jnp.where(done, jnp.int32(0), position), ~done)
            undrawn = state.undrawn.write(logits, slot, position + 1, ~done)
            return cache, state._replace(tables=tables, undrawn=undrawn), pack(())

        processing = self.drawing.gather(key.variant, state, slot, rows)

        def one(i: jax.Array, carry: tuple) -> tuple:
            cache, states, last, position, done, out = carry
            active = ~done
            at = jnp.where(active, position, jnp.int32(0))
            logits, cache = forward(cache, last, at, active)
            drawn = self.drawing.draw(key.variant, logits, rows, processing._replace(states=states), at + 1)
            out = jax.tree.map(lambda all_steps, new: all_steps.at[i].set(new), out, (drawn.tokens, drawn.logprobs))
            done |= ends(rows, drawn.tokens, at + 1)
            last = jnp.where(active, drawn.tokens, last)
            return cache, drawn.states, last, jnp.where(active, at + 1, position), done, out

        logprobs = None
        if key.variant == "full":
            n = geometry.num_logprobs
            shape = (key.steps, size)
            logprobs = TokenLogprobs(
                jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32),
                jnp.zeros((*shape, n), jnp.int32), jnp.zeros((*shape, n), jnp.float32),
            )  # fmt: skip
        carry = (
            cache, processing.states, rows[:, Column.LAST_TOKEN], position, done,
            (jnp.zeros((key.steps, size), jnp.int32), logprobs),
        )  # fmt: skip
        carry = jax.lax.fori_loop(jnp.int32(0), jnp.int32(key.steps), one, carry)
        cache, states, last, end, done, (tokens, logprobs) = carry
        new = jnp.concatenate([jnp.stack([last, end, done.astype(jnp.int32)], axis=1), rows[:, FIRST_PARAM:]], axis=1)
        state = state._replace(rows=state.rows.at[slot].set(new), tables=tables)
        if states:  # those of rows that have met their end are of no more use to anyone
            state = state._replace(processors=geometry.processors.scatter(state.processors, slot, states))
        return cache, state, pack([tokens, end - position, logprobs])

    def _encode(
        self, key: ProgramKey, weights: Leaves, cache: Leaves, state: State, packed: jax.Array
    ) -> tuple[Leaves, State, jax.Array]:
        """Has the encoder read sources, ragged, and writes what every decoder layer makes of them into their pages."""
        tables, size = self.geometry.tables, self.geometry.page_size
        count, table, ids = self.encode_layout(key).split(packed)
        step = EncodeStep.of(ids, count)
        token = jnp.arange(key.size, dtype=jnp.int32)
        row = jnp.searchsorted(step.query_start[1:], token, side="right", method="compare_all").astype(jnp.int32)
        page = table[jnp.minimum(row, jnp.int32(len(count) - 1)), step.positions // size]
        write = jnp.where(token < step.query_start[-1], page * size + step.positions % size, jnp.int32(0))
        nothing = jnp.zeros(0, jnp.int32)
        places: list[Cache] = [PagedCache((), nothing, nothing)] * len(tables.groups)
        places[tables.source] = CrossCache((), table, count, write)
        model = self.model.merge(weights)
        layers = model.read(model.encode(step), self.geometry.by_layer(cache, places))
        return _pools(layers), state, jnp.zeros(0, jnp.int32)

    def _score(self, weights: Leaves, hidden: jax.Array, targets: jax.Array) -> TokenLogprobs:
        """Log probabilities of targets [T] after hidden [T, E], a block of logits at a time."""
        tokens = hidden.shape[0]
        model, block = self.model.merge(weights), tokens if tokens <= SCORE_BLOCK else math.gcd(SCORE_BLOCK, tokens)

        def score(part: tuple[jax.Array, jax.Array]) -> TokenLogprobs:
            return self.drawing.logprobs(model.logits(part[0]), part[1])

        parts = (hidden.reshape(-1, block, hidden.shape[1]), targets.reshape(-1, block))
        return jax.tree.map(lambda x: x.reshape(x.shape[0] * block, *x.shape[2:]), jax.lax.map(score, parts))

    def _copy(
        self, key: ProgramKey, weights: Leaves, cache: Leaves, state: State, packed: jax.Array
    ) -> tuple[Leaves, State, jax.Array]:
        """Copies whole pages or entries: packed [copies, 3] of (group, source, target); all zeros is nothing."""
        group, source, target = packed.reshape(-1, 3).T
        cache = tuple(_copied(pool, group == place, source, target) for place, pool in self.geometry.by_group(cache))
        return cache, state, jnp.zeros(0, jnp.int32)

    def _seed(
        self, key: ProgramKey, weights: Leaves, cache: Leaves, state: State, packed: jax.Array
    ) -> tuple[Leaves, State, jax.Array]:
        """Gives a slot its logits processors' arguments and tells their states of tokens; see SeedLayout."""
        head, arguments, ids = self.seed_layout(key).split(packed)
        drawn = ids < 0
        processors = self.geometry.processors.seed(
            state.processors, head[0], head[1] != 0, arguments, jnp.where(drawn, -1 - ids, ids), drawn, head[2]
        )
        return cache, state._replace(processors=processors), jnp.zeros(0, jnp.int32)


@jax.jit  # traced once for all layers
def _copied(pool: jax.Array, here: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """A pool whose pages `source` are copied to `target`, [copies], those that are `here`; of the others the sink."""
    from_, to = jnp.where(here, source, jnp.int32(0)), jnp.where(here, target, jnp.int32(0))
    return pool.at[to].set(pool[from_])


def _pools(layers: Sequence[LayerCache]) -> Leaves:
    """All layers' pools, one after the other."""
    caches = itertools.chain.from_iterable(layer if isinstance(layer, tuple) else (layer,) for layer in layers)
    return tuple(itertools.chain.from_iterable(cache.pools for cache in caches))
