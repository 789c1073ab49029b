"""Processes that build programs beside this one: lowering is Python, whose lock is one process's.

What a worker does is in worker.py. Its parent waits for none: it builds itself what they have not come to, and where a
worker cannot start, or would build other programs (settings that its parent made in Python), nothing is lost but its
help.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from jaxllm.config import EngineConfig
from jaxllm.runner import executables
from jaxllm.runner.compiling import Job

log = logging.getLogger(__name__)

MOST = 4
"""Workers of a start, at most: each takes seconds of several cores until it lowers its first program."""
CORES = 4
"""Of the machine, for each worker: two lower and the others compile."""
BYTES = 1 << 30
"""Of the device that a worker may take: its context, and the programs that it loads."""


@dataclass(frozen=True)
class Order:
    """What workers are told.

    config, model_class: as the parent's own engine was asked for, but for the cache and the tokens of a step, which
    have its sizes. sizes: pages of each cache group. identity: of the parent's store; a worker whose store has another
    would build other programs.
    flags: the part of it that is of the environment. keys: a worker's share.
    """

    config: EngineConfig
    model_class: Any
    sizes: tuple[int, ...]
    identity: str
    flags: Mapping[str, str]
    keys: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Workers:
    """Up to `count` processes, and what all of them are told."""

    count: int
    order: Order

    @contextmanager
    def building[K](self, jobs: Sequence[Job[K]]) -> Iterator[Iterator[K]]:
        """The keys of jobs as they are built and kept; processes that are left when this ends are stopped."""
        built: SimpleQueue[int | None] = SimpleQueue()
        processes: list[subprocess.Popen[bytes]] = []
        threads: list[threading.Thread] = []

        def keys() -> Iterator[K]:
            running = len(threads)
            while running:
                if (i := built.get()) is None:
                    running -= 1
                else:
                    yield jobs[i].key

        try:
            try:
                for share in deal(len(jobs), self.count):
                    process = _start(replace(self.order, keys=tuple(jobs[i].key for i in share)))
                    processes.append(process)
                    arguments = process.stdout, share, built
                    thread = threading.Thread(target=_follow, args=arguments, name="worker", daemon=True)
                    thread.start()
                    threads.append(thread)
            except OSError as error:  # no memory or no process is left; those that run will do
                log.warning("a process that was to compile cannot be started: %s", error)
            yield keys()
        finally:
            for process in processes:
                process.kill()  # also one that is done: leaving the device in good order takes it a while
                process.wait()
            for thread in threads:
                thread.join()


def workers_for(cores: int, unclaimed: int) -> int:
    """How many workers there is room for. unclaimed: bytes of the device that no process has reserved, of which the
    engine's libraries are left half."""
    return min(MOST, cores // CORES, unclaimed // 2 // BYTES)


def deal(jobs: int, count: int) -> list[range]:
    """Places of so many jobs for up to `count` workers, each share in the order of the jobs and none empty."""
    return [range(first, jobs, count) for first in range(min(jobs, count))]


def _start(order: Order) -> subprocess.Popen[bytes]:
    now = executables.flags()
    environment = {name: value for name, value in os.environ.items() if name not in now} | {
        **order.flags,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the parent has the device's memory
    }
    process = subprocess.Popen(
        [sys.executable, "-c", "from jaxllm.runner.worker import main; main()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        start_new_session=True,  # what interrupts the parent is for the parent to tell
    )  # fmt: skip
    assert process.stdin is not None
    try:
        pickle.dump(order, process.stdin)
        process.stdin.close()
    except OSError as error:  # it has ended already, and said why
        log.warning("a process that was to compile has ended: %s", error)
    return process


def _follow(stdout: IO[bytes], share: Sequence[int], built: SimpleQueue[int | None]) -> None:
    """Hands on what a worker names, the place of a key in its order, until it ends."""
    with stdout:
        for line in stdout:
            built.put(share[int(line)])
    built.put(None)
