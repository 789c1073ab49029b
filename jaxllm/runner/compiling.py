"""From functions to executables: lowering in few threads, compiling in many, and what was kept from an earlier start.

Lowering is Python, which holds its lock, but for the assembler of the kernels' code; XLA's compiler lets go of the
lock. So few threads lower, ahead of the many that compile, and other processes help where there are cores for them
(workers.py). JAX serialises a program under that lock as well, 0.3 s for a large one: what is kept for the next start
is written when this one is over and nobody waits, see Compiler.keep. The jobs come with the longest compile first.
"""

import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
from jax.experimental.compilation_cache import compilation_cache

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) from any thread."""


@dataclass(frozen=True)
class ProgramCost:
    """What a compiled program takes: bytes of temporaries and outputs, and floating-point operations a run."""

    name: str
    temp_bytes: int
    flops: float


@dataclass(frozen=True)
class Job[K]:
    """A program to be built.

    arguments: abstract, one tree per parameter of the function. out: the structure of what it returns. donated: the
    parameters whose buffers it may take. options: of XLA, for this program alone. shared: other processes may build it.
    kernels: names of kernels that it has in common with other programs. One program of each name is lowered first and
    compiles them, which takes seconds; the others wait for it, or each would compile them too.
    """

    key: K
    function: Callable[..., Any] = field(repr=False)
    arguments: tuple[Any, ...] = field(repr=False)
    out: Any = field(repr=False)
    donated: tuple[int, ...] = ()
    options: tuple[tuple[str, bool | int | str], ...] = ()
    shared: bool = True
    kernels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.key)

    def lower(self) -> jax.stages.Lowered:
        return jax.jit(self.function, donate_argnums=self.donated).lower(*self.arguments)

    def signature(self) -> str:
        """A digest of the key and of what goes in and out."""
        leaves, structure = jax.tree.flatten(self.arguments)
        shapes = [(leaf.shape, leaf.dtype.name) for leaf in leaves]
        described = repr((self.key, self.donated, self.options, shapes, str(structure), str(self.out)))
        return hashlib.sha256(described.encode()).hexdigest()


@dataclass(frozen=True)
class Built:
    """A program that can run, and what it takes."""

    run: jax.stages.Compiled
    cost: ProgramCost


class Kept(Protocol):
    """Where programs outlast the process; see executables.Store."""

    def load[K](self, job: Job[K]) -> Built | None: ...
    def save[K](self, job: Job[K], built: Built) -> None: ...
    def trim(self) -> None: ...
    def forget_loaded(self) -> None: ...
    def give_up(self) -> None: ...


class Elsewhere(Protocol):
    """Other processes that build programs and keep them; see workers.Workers."""

    def building[K](self, jobs: Sequence[Job[K]]) -> AbstractContextManager[Iterator[K]]: ...


WORTH_SHARING = 16
"""Programs, for which other processes are started."""


class StoppedError(Exception):
    """The programs are not wanted any more."""


class Compiler:
    """Builds programs, and knows how long that took.

    Attributes:
        loaded, compiled: programs by where they came from.
        lower_seconds, compile_seconds: of all threads, summed up.
    """

    def __init__(
        self,
        kept: Kept | None = None,
        *,
        lowering: int = 3,
        compiling: int = min(16, os.cpu_count() or 1),
        keeps_early: bool = False,
    ):
        """kept: where programs come from and go to. lowering, compiling: threads that may do so at a time. keeps_early:
        what is built is kept as soon as all is lowered, not when `keep` or `keep_next` says so."""
        self.kept = kept
        self._keeps_early = keeps_early
        self._lowering, self._compiling = lowering, compiling
        self.loaded = self.compiled = 0
        self.lower_seconds = self.compile_seconds = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._saver = ThreadPoolExecutor(1, "save")
        self._unkept: deque[tuple[Job[Any], Built]] = deque()
        self._save_failed = False

    def build[K](
        self,
        jobs: Sequence[Job[K]],
        progress: Progress | None = None,
        check: Callable[[ProgramCost], None] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> dict[K, Built]:
        """Every job's program. check: told of each as soon as it is there; what it raises ends the rest.

        elsewhere: who helps with what is not kept yet. What is not shared is built here alone; then this process takes
        from the others what they would come to last, until nothing is left: it never waits for them.
        """
        built: dict[K, Built] = {}
        failed = threading.Event()

        def finish(job: Job[K], program: Built, *, loaded: bool) -> None:
            if check is not None:
                check(program.cost)
            with self._lock:
                if job.key in built:  # by another process as well
                    return
                built[job.key] = program
                self.loaded += loaded
                self.compiled += not loaded
                if progress is not None:
                    progress(len(built), len(jobs), "compiling")

        def load(job: Job[K]) -> None:
            if (program := self._load(job)) is not None:
                finish(job, program, loaded=True)

        def lower(job: Job[K], after: Sequence[Future[jax.stages.Lowered | None]]) -> jax.stages.Lowered | None:
            wait(after)
            return None if failed.is_set() or job.key in built else self._lower(job)

        def compile(job: Job[K], lowering: Future[jax.stages.Lowered | None]) -> None:
            lowered = lowering.result()
            if failed.is_set():
                raise StoppedError
            if lowered is None or job.key in built:
                return
            program = self._compile(job, lowered)
            if self.kept is not None and not failed.is_set():
                if self._keeps_early:
                    self._saver.submit(self._save, job, program)
                else:
                    self._unkept.append((job, program))
            finish(job, program, loaded=False)

        def follow(kept: Iterator[K], given: Mapping[K, Job[K]]) -> None:
            with ThreadPoolExecutor(self._compiling, "load") as loaders:
                for task in [loaders.submit(copy_context().run, load, given[key]) for key in kept]:
                    task.result()

        following: Future[None] | None = None
        with ExitStack() as stack:
            lowerers = stack.enter_context(ThreadPoolExecutor(self._lowering, "lower"))
            lowered: dict[K, Future[jax.stages.Lowered | None]] = {}
            pool = stack.enter_context(ThreadPoolExecutor(self._compiling + 1, "compile"))

            def all_of(tasks: Iterable[Future[None]]) -> None:
                for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
                    task.result()

            try:
                if self.kept is not None:
                    all_of([pool.submit(copy_context().run, load, job) for job in jobs])
                missing = [job for job in jobs if job.key not in built]
                if missing and self.kept is not None:
                    stack.enter_context(_without_compilation_cache())
                    given = {job.key: job for job in missing if job.shared}
                    if elsewhere is not None and len(given) >= WORTH_SHARING:
                        # Left before the pool is, so that what follows the processes ends with them.
                        kept = stack.enter_context(elsewhere.building(list(given.values())))
                        following = pool.submit(copy_context().run, follow, kept, given)
                        # Of what others build, what they come to last.
                        missing = [*(job for job in missing if not job.shared), *reversed(given.values())]
                missing, leaders = _leaders_first(missing)
                for job in missing:
                    after = [lowered[key] for name in job.kernels if (key := leaders[name]) != job.key]
                    lowered[job.key] = lowerers.submit(copy_context().run, lower, job, after)
                if self._keeps_early:
                    self._saver.submit(wait, list(lowered.values()))  # nothing is written before
                all_of([pool.submit(copy_context().run, compile, job, lowered[job.key]) for job in missing])
            except BaseException:
                failed.set()  # lowering ends at once
                self._unkept.clear()  # no start will ask for the programs of a plan that was given up
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if following is not None:
            following.result()  # raises what `check` did
        return built

    def keep(self, *, wait: bool = False) -> None:
        """Has what was built written for the next start, and may wait for it. The interpreter does before it ends."""

        def keep_all() -> None:
            while self.keep_next():
                pass

        writing = self._saver.submit(keep_all)
        if wait:
            writing.result()

    def keep_next(self) -> bool:
        """Writes one of the programs that were built. False where all are."""
        if self.kept is None or not self._unkept:
            return False
        self._save(*self._unkept.popleft())
        if self._unkept:
            return True
        try:
            self.kept.trim()
        except OSError as error:  # the engine runs, and must not die of what the next start would have found
            log.warning("programs of earlier starts are not removed: %s", error)
        return False

    def stop(self) -> None:
        """Ends a `build` that another thread is in, which raises StoppedError."""
        self._stop.set()

    @contextmanager
    def trying(self) -> Iterator[None]:
        """For the first runs: where they fail, the next start compiles what this one has loaded."""
        try:
            yield
        except Exception:
            if self.loaded and self.kept is not None:
                log.warning("dropped %d executables kept from an earlier start, as the first runs failed", self.loaded)
                self.kept.forget_loaded()
            raise

    def describe(self) -> str:
        """For the log."""
        made = f"lowering {self.lower_seconds:.1f} s, compiling {self.compile_seconds:.1f} s over all threads"
        return f"{self.loaded} programs loaded, {self.compiled} compiled{f' ({made})' if self.compiled else ''}"

    def _load[K](self, job: Job[K]) -> Built | None:
        return self.kept.load(job) if self.kept is not None and not self._stop.is_set() else None

    def _lower[K](self, job: Job[K]) -> jax.stages.Lowered:
        if self._stop.is_set():
            raise StoppedError
        started = time.perf_counter()
        lowered = job.lower()
        with self._lock:
            self.lower_seconds += time.perf_counter() - started
        return lowered

    def _compile[K](self, job: Job[K], lowered: jax.stages.Lowered) -> Built:
        if self._stop.is_set():
            raise StoppedError
        started = time.perf_counter()
        run = lowered.compile(compiler_options=dict(job.options) or None)
        built = Built(run, _cost(job.name, run))
        with self._lock:
            self.compile_seconds += time.perf_counter() - started
        return built

    def _save[K](self, job: Job[K], built: Built) -> None:
        assert self.kept is not None
        try:
            self.kept.save(job, built)
        except Exception as error:  # a full disk, a program that JAX cannot serialise: the start goes on
            with self._lock:
                first, self._save_failed = not self._save_failed, True
            if first:
                log.warning("%s is not kept as an executable: %s: %s", job.name, type(error).__name__, error)
                if not isinstance(error, OSError):
                    log.warning("JAX's compilation cache keeps programs from the next start on")
                    with suppress(OSError):  # or the next start finds out again
                        self.kept.give_up()


def _leaders_first[K](jobs: Sequence[Job[K]]) -> tuple[list[Job[K]], dict[str, K]]:
    """In another order: first of all, for each name of kernels, the job that leads, whose key is told as well.

    That has the fewest names, so that it has little to wait for, and no job waits for one behind it.
    """
    plainest = sorted(jobs, key=lambda job: len(job.kernels))
    leaders: dict[str, K] = {}
    for job in plainest:
        for name in job.kernels:
            leaders.setdefault(name, job.key)
    leading = set(leaders.values())
    first = [job for job in plainest if job.key in leading]
    return [*first, *(job for job in jobs if job.key not in leading)], leaders


def _cost(name: str, run: jax.stages.Compiled) -> ProgramCost:
    memory = run.memory_analysis()
    assert memory is not None
    new_outputs = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    flops = (run.cost_analysis() or {}).get("flops", 0.0)
    return ProgramCost(name, memory.temp_size_in_bytes + new_outputs, flops)


@contextmanager
def _without_compilation_cache() -> Iterator[None]:
    """Keeps JAX's own cache out of it: it would write everything a second time, and what comes out of it cannot be
    serialised again (on a CPU the executable loses its functions)."""
    before = jax.config.jax_enable_compilation_cache
    _enable_compilation_cache(False)
    try:
        yield
    finally:
        _enable_compilation_cache(before)


def _enable_compilation_cache(enable: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enable)
    compilation_cache.reset_cache()  # JAX looks at the setting once
