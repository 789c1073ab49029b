"""The runner: a StepPlan in, a StepOutput out, one packed array each way and nothing waiting for the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import weights
from jaxllm.config import EngineConfig, SchedulerConfig
from jaxllm.core import ModelInfo, Request, Row, StepOutput, StepPlan
from jaxllm.errors import ConfigError
from jaxllm.layers.step import EncodeStep
from jaxllm.models.config import ModelConfig
from jaxllm.models.encoder_decoder import EncoderDecoderConfig
from jaxllm.models.fields import token_ids
from jaxllm.runner.compiling import Progress
from jaxllm.runner.drawing import VARIANTS
from jaxllm.runner.guard import CompileGuard
from jaxllm.runner.packing import COPIES, pack_copies, read_decode, read_extend, read_scores
from jaxllm.runner.plan import MemoryPlan, Prepared, compile_table, prepare, with_costs
from jaxllm.runner.programs import Leaves, ProgramKey
from jaxllm.runner.resolve import generation_defaults, given
from jaxllm.runner.start import Stages, build_and_load
from jaxllm.runner.state import NUM_PARAMS, pack_params
from jaxllm.runner.table import ProgramTable, everything

_FULL = VARIANTS.index("full")


@dataclass(slots=True)
class Handle:
    """A submitted step whose output is on its way.

    key, draw: of the step's program, and of the draw program behind it if it is a forward program. undrawn: the
    draw is not enqueued yet.
    """

    plan: StepPlan
    key: ProgramKey
    draw: ProgramKey | None
    out: jax.Array | None = None
    scores: jax.Array | None = None
    undrawn: bool = False


class Runner:
    """Executes plans on one device. One thread submits and collects.

    Attributes:
        config: the configuration without Nones.
        info: what the rooms above may know of the model.
        memory_plan, table: how memory is divided, and the programs.
        start_seconds: wall time of each stage of the start, some of which ran beside each other.
    """

    @classmethod
    def load(cls, config: EngineConfig, *, model_class: Any = None, progress: Progress | None = None) -> "Runner":
        """Plans memory, loads weights, compiles and warms every program. progress(done, total, what) is told."""
        stages = Stages()
        with stages("planning"):
            prepared = prepare(config, model_class=model_class)
        empty = prepared.model

        def read(report: Progress) -> Any:
            path, how = weights.resolve_model_path(config.model), prepared.config
            return weights.load(empty, path, load_format=how.load_format, seed=how.seed, progress=report)

        compiler = prepared.table.compiler
        prepared, model = build_and_load(lambda: compile_table(prepared, progress), read, compiler, progress, stages)
        with stages("warm-up"), compiler.trying():
            runner = cls(prepared, model, progress)
        stages.end(compiler)
        runner.start_seconds = stages.seconds
        return runner

    def __init__(self, prepared: Prepared, model: Any, progress: Progress | None = None):
        """prepared: with its table compiled. model: the prepared one with its weights."""
        self.config = prepared.config
        self.start_seconds: dict[str, float] = {}
        self.table: ProgramTable = prepared.table
        self.memory_plan: MemoryPlan = with_costs(prepared.plan, prepared.table)
        self.info = _model_info(prepared)
        self._geometry = self.table.programs.geometry
        self._weights: Leaves = tuple(type(prepared.flat).of(model).leaves)
        cache = self._geometry.cache(self.memory_plan.sizes, jnp.dtype(self.config.dtype))
        self._cache, self._state = self.table.warm(self._weights, cache, self._geometry.state(), progress)
        # By slot: parameters, as programs take them; the least variant that serves the request, and that which does
        # until it has drawn so many tokens.
        self._params = np.zeros((self._geometry.sink + 1, NUM_PARAMS), np.int32)
        self._variant = [0] * (self._geometry.sink + 1)
        self._admitted: list[Request | None] = [None] * (self._geometry.sink + 1)  # those without processors
        self._processed_until = [0.0] * (self._geometry.sink + 1)
        # Masks of steps without any, by the number of rows; they stay on the device.
        self._everything = {
            key.size: everything(key.size, self._geometry.vocab_size) for key in self.table.keys if key.kind == "draw"
        }
        self._seed_key = next(key for key in self.table.keys if key.kind == "seed")
        self._prompt_logits = jax.jit(self.table.programs.prompt_logits)
        self._guard = CompileGuard()

    @property
    def scheduler_config(self) -> SchedulerConfig:
        """The numbers the scheduler works with."""
        c = self.config
        return SchedulerConfig(
            groups=tuple(plan.group for plan in self.memory_plan.groups),
            page_size=c.block_size,
            max_num_seqs=given(c.max_num_seqs),
            max_num_batched_tokens=given(c.max_num_batched_tokens),
            max_model_len=given(c.max_model_len),
            decode_steps=given(c.decode_steps),
            stream_interval=c.stream_interval_ms / 1000,
            enable_prefix_caching=c.enable_prefix_caching,
            policy=c.scheduling_policy,
            max_queued=c.max_queued,
        )

    def keep(self, *, wait: bool = False) -> None:
        """Has the programs that this start compiled written for the next one; see Compiler.keep."""
        self.table.compiler.keep(wait=wait)

    def keep_next(self) -> bool:
        """Writes one of them, which holds the interpreter's lock for some tenths of a second. False where all are."""
        return self.table.compiler.keep_next()

    def submit(self, plan: StepPlan) -> Handle:
        """Enqueues a plan behind what was submitted before; returns without waiting for the device.

        Of a plan with constrained rows nothing is drawn before `draw`, which must come before the next plan.
        """
        with self._guard:
            for at in range(0, len(plan.copies), COPIES):
                copies = plan.copies[at : at + COPIES]
                key = self.table.choose("copy", len(copies), "greedy")
                self._run(key, pack_copies(copies, key.size))
            if plan.kind == "extend":
                fresh = [row for row in plan.rows if row.fresh]
                for row in fresh:
                    self._admit(row.request, row.slot)
                self._read_sources([row for row in fresh if row.request.source and not row.request.source_read])
            needed = self._needed(plan)
            key = self.table.choose(
                plan.kind,
                plan.num_tokens if plan.kind == "extend" else len(plan.rows),
                VARIANTS[needed],
                plan.num_steps,
            )
            draw = self.table.choose("draw", len(plan.rows), VARIANTS[min(needed, _FULL)]) if key.forward else None
            if plan.kind == "extend":
                layout = self.table.programs.extend_layout(key)
                packed = layout.pack(plan.rows, self._params, self._geometry.sink)
            else:
                packed = self.table.programs.decode_layout(key).pack(plan.rows, self._geometry.sink)
            out = self._run(key, packed)
            handle = Handle(plan, key, draw)
            if not key.forward:
                handle.out = out
                out.copy_to_host_async()
            elif key.variant == "scored":
                handle.scores = out
                out.copy_to_host_async()
            handle.undrawn = key.forward
        if handle.undrawn and not plan.constrained:
            self.draw(handle)
        return handle

    def draw(self, handle: Handle, masks: np.ndarray | None = None) -> None:
        """Enqueues the draws of a submitted plan with constrained rows.

        masks: [rows of the plan at least, ceil(V / 32)] int32, see Constraint.fill; None forbids nothing. They must
        not change before the step is collected.
        """
        key = handle.draw
        assert handle.undrawn, "nothing waits to be drawn"
        assert key is not None
        with self._guard:
            allowed = self._everything[key.size] if masks is None else _rows_of(masks, key.size)
            self._state, handle.out = self.table.draw(key, self._state, allowed)
            handle.out.copy_to_host_async()
        handle.undrawn = False

    def collect(self, handle: Handle) -> StepOutput:
        """Waits for a step and reads what it yielded."""
        assert handle.out is not None, "a plan with constrained rows is drawn before it is collected"
        with self._guard:
            packed = np.asarray(handle.out)
        key, rows, num_logprobs = handle.key, handle.plan.rows, self._geometry.num_logprobs
        drew = handle.draw or key
        logprobs = num_logprobs if drew.variant == "full" else None
        if key.kind == "decode" and key.steps > 1:
            outputs = read_decode(packed, rows, key.size, key.steps, logprobs)
        else:
            outputs = read_extend(packed, rows, drew.size, logprobs)
        if handle.scores is not None:
            read_scores(np.asarray(handle.scores), rows, outputs, key.size, num_logprobs)
        return StepOutput(outputs)

    def step_seconds(self, num_rows: int) -> float:
        """Measured seconds of one decode step of num_rows, with short contexts."""
        return self.table.step_seconds(num_rows)

    def extend_seconds(self) -> list[tuple[int, float]]:
        """Sizes of the programs that compute prompts, and the measured seconds of each, with short contexts; none where
        their times were not measured."""
        return self.table.extend_seconds()

    def prompt_logits(self, token_ids: list[int], source: Sequence[int] = ()) -> np.ndarray:
        """Logits [T, V] float32 after each of T tokens; source: what an encoder reads. A research call: it compiles
        when a new length class comes, outside the serving table, and shares the weights alone with running requests."""
        sources = EncodeStep.of(jnp.asarray(_padded(source)), jnp.asarray([len(source)], jnp.int32)) if source else None
        logits = self._prompt_logits(self._weights, _padded(token_ids), sources)
        return np.asarray(logits)[: len(token_ids)]

    def _run(self, key: ProgramKey, packed: np.ndarray) -> jax.Array:
        self._cache, self._state, out = self.table.run(key, self._weights, self._cache, self._state, packed)
        return out

    def check(self, request: Request) -> None:
        """Raises RequestError where a logits processor does not take what the request has for it."""
        self._geometry.processors.read(request)

    def _read_sources(self, rows: list[Row]) -> None:
        """Has the encoder read the sources of these rows, together no more tokens than a step's."""
        if rows:
            key = self.table.choose("encode", sum(len(row.request.source) for row in rows), "greedy")
            self._run(key, self.table.programs.encode_layout(key).pack(rows))

    def _admit(self, request: Request, slot: int) -> None:
        """Takes a request's parameters for its slot and, if it uses logits processors, prepares what they know."""
        if self._admitted[slot] is request:  # who has jumped ahead comes again
            return
        params, processors = request.params, self._geometry.processors
        reading = processors.read(request)
        self._admitted[slot] = None if reading.active else request
        self._params[slot] = pack_params(request, reading.active)
        self._variant[slot] = VARIANTS.index("greedy" if params.greedy else "sampled")
        self._processed_until[slot] = math.inf if params.logprobs is not None else reading.until
        if reading.active:
            layout = self.table.programs.seed_layout(self._seed_key)
            for packed in layout.pack(request, slot, reading.arguments, processors.reads_prompt(reading.active)):
                self._run(self._seed_key, packed)

    def _needed(self, plan: StepPlan) -> int:
        """Rank of the least variant that serves every row of a plan, masks left aside."""
        needed = max(self._variant[row.slot] for row in plan.rows)
        scored = VARIANTS.index("scored")
        for row in plan.rows:
            request, params = row.request, row.request.params
            if needed < _FULL and self._processed_until[row.slot] > len(request.output):
                needed = _FULL
            if (
                plan.kind == "extend"
                and params.prompt_logprobs is not None
                and row.start + 1 < len(request.prompt)
            ):  # fmt: skip
                needed = scored
        return needed


def _rows_of(masks: np.ndarray, size: int) -> np.ndarray:
    """The first `size` masks, as many as a program takes; those of padding rows may be anything."""
    if len(masks) >= size:
        return masks[:size]
    return np.concatenate([masks, np.broadcast_to(masks[-1:], (size - len(masks), masks.shape[1]))])


def _padded(token_ids: Sequence[int]) -> np.ndarray:
    """[T] int32, T a power of two."""
    padded = np.zeros(max(16, 1 << (len(token_ids) - 1).bit_length()), np.int32)
    padded[: len(token_ids)] = token_ids
    return padded


def _decoder_start(config: ModelConfig, generation: dict[str, Any]) -> tuple[int, ...] | None:
    """What decoder prompts begin with: the start token, and the one that the makers have behind it in any case."""
    if not isinstance(config, EncoderDecoderConfig):
        return None
    start = generation.get("decoder_start_token_id", config.decoder_start_token_id)
    if type(start) is not int:
        raise ConfigError(
            f"decoder_start_token_id={start!r}: the decoder has no token to begin with; name one, such as the language"
            " to translate into, in generation_config.json"
        )
    forced = generation.get("forced_bos_token_id", config.forced_bos_token_id)
    if forced is not None and type(forced) is not int:
        raise ConfigError(f"generation_config.json: forced_bos_token_id={forced!r} must be a token id or null")
    return (start,) if forced is None else (start, forced)


def _generation_config(config: EngineConfig) -> dict[str, Any]:
    """The content of the generation_config.json that the configuration names. Raises ConfigError."""
    if config.generation_config in ("auto", "vllm"):
        return weights.read_generation_config(config.model)
    if content := weights.read_generation_config(config.generation_config):
        return content
    raise ConfigError(
        f"generation_config={config.generation_config!r}: no generation_config.json is there; name a directory that "
        "holds one, auto (the checkpoint's own) or vllm (none)"
    )


def _model_info(prepared: Prepared) -> ModelInfo:
    config, path = prepared.config, weights.resolve_model_path(prepared.config.model)
    generation = _generation_config(config)
    eos = generation.get("eos_token_id", list(prepared.architecture.config.eos_token_ids))
    return ModelInfo(
        name=config.served_model_name[0],
        aliases=config.served_model_name[1:],
        architecture=prepared.architecture.name,
        dtype=config.dtype,
        num_parameters=prepared.plan.parameters,
        vocab_size=prepared.architecture.config.vocab_size,
        max_model_len=prepared.plan.max_model_len,
        eos_token_ids=token_ids(eos, "generation_config.json: eos_token_id"),
        max_logprobs=prepared.table.programs.geometry.num_logprobs,
        path=str(path),
        decoder_start=_decoder_start(prepared.architecture.config, generation),
        generation_defaults=generation_defaults(config, generation),
    )
