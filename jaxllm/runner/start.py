"""A start, stage by stage: programs are built while weights are read, and one line says what took how long."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from jaxllm.runner.compiling import Compiler, Progress, StoppedError

log = logging.getLogger(__name__)


class Stages:
    """Wall time of each stage, some of which run beside each other.

    seconds: by stage, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def end(self, compiler: Compiler) -> None:
        """The engine is ready."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        self.seconds["lowering"] = compiler.lower_seconds
        self.seconds["compiling, all threads"] = compiler.compile_seconds
        self.seconds["total"] = time.perf_counter() - self._started
        log.info("ready in %.1f s: %s; %s", self.seconds["total"], parts, compiler.describe())


def build_and_load[P, M](
    build: Callable[[], P], load: Callable[[Progress], M], compiler: Compiler, progress: Progress | None, stages: Stages
) -> tuple[P, M]:
    """What `build` makes in this thread with the compiler, and what `load` reads in another one.

    The error of either ends the other.
    """
    given_up = threading.Event()

    def report(done: int, total: int, what: str) -> None:
        if given_up.is_set():
            raise StoppedError
        if progress is not None:
            progress(done, total, what)

    def read() -> M:
        try:
            with stages("weights"):
                return load(report)
        except BaseException:
            compiler.stop()
            raise

    with ThreadPoolExecutor(1, "weights") as thread:
        reading = thread.submit(read)
        try:
            with stages("programs"):
                built = build()
        except StoppedError:
            reading.result()  # raises what stopped the compiler
            raise
        except BaseException:
            given_up.set()
            raise
        return built, reading.result()
