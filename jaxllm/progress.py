"""Shows how far long work is: a bar on a terminal, a few log lines elsewhere.

    with progress() as report:
        Runner.load(config, progress=report)

`report(done, total, what)` may be called from any thread. `what` names the phase and stays the same during
it ("loading weights", "compiling"): each phase has one bar, or one log line at its start, one about every
`LOG_SECONDS` while it goes on, and one at its end with the seconds it took.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int, str], None]
"""report(done, total, what): `done` of `total` units of the phase `what` are finished."""

LOG_SECONDS = 5.0

log = logging.getLogger(__name__)


@contextmanager
def progress(show: bool | None = None) -> Iterator[Report]:
    """Yields a `Report`. show: bars on standard error (True), log lines (False), or by what it is (None)."""
    if show if show is not None else sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _LogLines().report


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    tasks: dict[str, TaskID] = {}
    lock = threading.Lock()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def report(done: int, total: int, what: str) -> None:
            with lock:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done, total=total)

        yield report


class _LogLines:
    """The same report as log lines, seldom enough to read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[str, float] = {}
        self._logged: dict[str, float] = {}
        self._ended: set[str] = set()

    def report(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        with self._lock:
            if what in self._ended:
                return
            started = self._started.setdefault(what, now)
            if done >= total:
                self._ended.add(what)
                log.info("%s: %d of %d in %.1f s", what, done, total, now - started)
            elif what not in self._logged or now - self._logged[what] >= LOG_SECONDS:
                self._logged[what] = now
                log.info("%s: %d of %d", what, done, total)


@contextmanager
def reporting(given: Report | None) -> Iterator[Report]:
    """The caller's way of showing progress, or bars on a terminal and log lines elsewhere."""
    if given is not None:
        yield given
        return
    with progress() as report:
        yield report
