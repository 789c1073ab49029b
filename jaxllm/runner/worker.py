"""One process that builds programs for another: `python -c "from jaxllm.runner.worker import main; main()"`.

It is told on standard input, a pickle from nobody but its parent, of an engine and of some of its programs' keys. It
prepares the same engine without weights or cache, builds those programs into the store of executables that both share,
and names each on standard output, by its place in the order, once it is there.
"""

import os
import pickle
import select
import sys
import threading
from collections.abc import Callable
from typing import Any, Self

from jaxllm.runner.compiling import Built, Compiler, Job
from jaxllm.runner.executables import Store
from jaxllm.runner.plan import prepare
from jaxllm.runner.workers import CORES, Order


class _Announced:
    """A store that tells of what it has kept."""

    def __init__(self, store: Store, tell: Callable[[Any], None]):
        self._store, self._tell = store, tell

    def load[K](self, job: Job[K]) -> Built | None:
        return self._store.load(job)

    def save[K](self, job: Job[K], built: Built) -> None:
        self._store.save(job, built)
        self._tell(job.key)

    def trim(self) -> None:
        """The parent does."""

    def forget_loaded(self) -> None:
        self._store.forget_loaded()

    def give_up(self) -> None:
        self._store.give_up()


class _Names:
    """Standard output, for names of programs alone: whatever else is printed goes to standard error.

    When nobody reads it any more the process ends: its parent was killed, and what it builds and holds of the device is
    in the way of the next start.
    """

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        threading.Thread(target=self._end_with_reader, name="reader", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tell(self, place: int) -> None:
        print(place, file=self._file, flush=True)

    def _end_with_reader(self) -> None:
        watched = select.poll()
        watched.register(self._file.fileno(), 0)  # of a pipe that nobody reads an error is told all the same
        watched.poll()
        os._exit(1)


def main() -> None:
    """One worker's life."""
    with _Names() as names:
        order: Order = pickle.load(sys.stdin.buffer)
        prepared = prepare(order.config, model_class=order.model_class, program_bytes=0)
        store = prepared.table.compiler.kept
        if not isinstance(store, Store) or store.identity != order.identity:
            sys.exit("a process that was to compile ends: it would build other programs than its parent")
        places = {key: place for place, key in enumerate(order.keys)}
        announced = _Announced(store, lambda key: names.tell(places[key]))
        compiler = Compiler(announced, lowering=2, compiling=CORES, keeps_early=True)
        compiler.build([prepared.table.job(key, order.sizes) for key in order.keys])
        compiler.keep(wait=True)
