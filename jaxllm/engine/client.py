"""EngineClient: the engine in a thread of its own, for servers that have other things to do."""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from jaxllm.core import Delta, FinishReason, Load, ModelInfo, PoolingRequest, Request
from jaxllm.engine.engine import Engine
from jaxllm.errors import EngineDeadError, JaxllmError, QueueFullError, RequestError

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Without work, from which on the engine's thread writes what is kept of a start, a program in some tenths of one."""

OnDelta = Callable[[Delta], None]


class Observer(Protocol):
    """Watches an engine, for metrics. Called on the engine's thread: it must be quick and must not block."""

    def observe_request(self, request: Request | PoolingRequest) -> None:
        """A request was queued."""

    def observe_delta(self, delta: Delta, previous_time: float | None) -> None:
        """A request got tokens or ended. previous_time: time.monotonic() of its delta before, None for the first."""

    def observe_step(self, kind: str, num_tokens: int, seconds: float) -> None:
        """A step ended. kind: extend, decode or encode. num_tokens: drawn (decode) or computed (the others)."""


class EngineClient:
    """Runs an engine's loop in a thread and lets any other thread submit and abort.

    Every request that `submit` took ends with exactly one delta that has a `finish` and no `more`, whatever happens:
    when the engine dies each gets one with FinishReason.ERROR. `on_delta` is called on the engine's thread, in order
    for each request, and must not block.

    Attributes:
        info: the model.
        make_request, make_pooling_request: those of Engine.
        max_queued: requests that can wait together, as those of one call do before the first step after it.
        capacity: requests that can run and wait together.
    """

    def __init__(self, engine: Engine):
        self.info: ModelInfo = engine.info
        self.engine = engine
        self.make_request = engine.make_request
        self.make_pooling_request = engine.make_pooling_request
        self.max_queued = engine.config.max_queued
        self.capacity = engine.runner.scheduler_config.max_num_seqs + self.max_queued
        self._observers: list[Observer] = []
        self._streams: dict[str, _Stream] = {}
        self._inbox: deque[Callable[[], object]] = deque()  # what other threads sent, for the engine's to carry out
        self._num_entering = 0  # requests in the inbox
        self._closed: str | None = None  # why no request is taken any more
        self._stopping = False
        # Guards the above. Waited on by the idle loop and by `drain`.
        self._changed = threading.Condition()
        # The engine's thread's own: how long it waits for work before it keeps a program; None where all are kept.
        self._patience: float | None = IDLE_SECONDS
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Requests can be answered: the engine has not died and was not stopped."""
        return self._thread.is_alive() and self.engine.death is None

    def add_observer(self, observer: Observer) -> None:
        self._observers = [*self._observers, observer]

    def submit(self, request: Request | PoolingRequest, on_delta: OnDelta) -> None:
        """Queue a request. Raises QueueFullError, RequestError (its id is in use) or EngineDeadError."""
        with self._changed:
            self._check_open()
            if request.request_id in self._streams:
                raise RequestError(
                    f"request_id={request.request_id!r}: a request of this id is running; choose another", "request_id"
                )
            if self._num_entering + self.engine.num_queued >= self.max_queued:
                raise QueueFullError(f"{self.max_queued} requests wait already: try again later, or raise --max-queued")
            self._streams[request.request_id] = _Stream(on_delta)
            self._num_entering += 1
            self._send(functools.partial(self._add, request))

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT, index: int | None = None) -> bool:
        """End a request, or one sample of it; its last delta bears `reason`, STOP where its text met a stop string.

        False when no request of this id is running.
        """
        with self._changed:
            if request_id not in self._streams:
                return False
            self._send(functools.partial(self.engine.abort, request_id, reason, index))
            return True

    def load(self) -> Load:
        load = self.engine.load()
        load.waiting += self._num_entering
        return load

    def flush_prefix_cache(self) -> int:
        """Forget every cached prefix; returns the pages that it frees. Waits for the step in progress."""
        freed: Future[int] = Future()
        with self._changed:
            self._check_open()
            self._send(functools.partial(self._flush, freed))
        return freed.result()

    def drain(self, seconds: float) -> bool:
        """Take no more requests, and wait until those running have ended; False if some still run after `seconds`."""
        with self._changed:
            self._closed = self._closed or "the engine is shutting down and takes no more requests"
            return self._changed.wait_for(lambda: not self._streams, timeout=seconds)

    def stop(self) -> None:
        """Abort what still runs and end the thread."""
        with self._changed:
            self._closed = self._closed or "the engine was stopped"
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _check_open(self) -> None:
        closed = self.engine.death or self._closed
        if closed is not None:
            raise EngineDeadError(closed)

    def _send(self, command: Callable[[], object]) -> None:
        self._inbox.append(command)
        self._changed.notify_all()

    # --- on the engine's thread ---

    def _run(self) -> None:
        engine = self.engine
        try:
            while self._next_commands():
                if engine.has_work:
                    self._deliver(engine.step())
                    self._observe_step()
            engine.keep()
        except Exception:
            log.critical("the engine died; every running request ends with an error", exc_info=True)
        finally:
            self._end_all()

    def _next_commands(self) -> bool:
        """Sleep while there is nothing to do, then carry out what other threads sent. False to stop."""
        if not self._inbox and not self._stopping and self.engine.has_work:
            return True  # the usual case, without the lock: what arrives this moment is seen a step later
        with self._changed:
            wanted = self._changed.wait_for(
                lambda: self._inbox or self._stopping or self.engine.has_work, timeout=self._patience
            )
        if wanted:
            if self._patience is not None:
                self._patience = IDLE_SECONDS
            self._carry_out()
        else:
            self._patience = 0.0 if self.engine.keep_next() else None
        return not self._stopping

    def _carry_out(self) -> None:
        while self._inbox:
            self._inbox.popleft()()  # one that fails leaves the others where `_end_all` finds them

    def _add(self, request: Request | PoolingRequest) -> None:
        try:
            self.engine.add(request)
        except Exception as error:  # it was checked before, but the engine may have died meanwhile
            if not isinstance(error, JaxllmError):
                log.exception("request %s cannot be queued", request.request_id)
            self._deliver([_failed(request.request_id, str(error) or type(error).__name__)])
            return
        finally:
            with self._changed:
                self._num_entering -= 1
        try:
            for observer in self._observers:
                observer.observe_request(request)
        except Exception:
            log.exception("an observer failed on request %s", request.request_id)

    def _flush(self, freed: Future[int]) -> None:
        try:
            freed.set_result(self.engine.flush_prefix_cache())
        except Exception as error:
            freed.set_exception(error)
            raise

    def _deliver(self, deltas: list[Delta]) -> None:
        now = time.monotonic()
        for delta in deltas:
            stream = self._streams[delta.request_id]
            if delta.finish is not None and not delta.more:
                self._close_stream(delta.request_id)
            previous, stream.times[delta.index] = stream.times.get(delta.index), now
            try:
                stream.on_delta(delta)
            except Exception:  # a listener's fault is not the engine's, nor that of the other requests
                log.exception("whoever listens to request %s failed, so it ends", delta.request_id)
                stream.on_delta = _ignore
                self.engine.abort(delta.request_id)
            try:
                for observer in self._observers:
                    observer.observe_delta(delta, previous)
            except Exception:
                log.exception("an observer failed on a delta of request %s", delta.request_id)

    def _close_stream(self, request_id: str) -> None:
        with self._changed:
            del self._streams[request_id]
            if not self._streams:
                self._changed.notify_all()

    def _observe_step(self) -> None:
        step = self.engine.last_step
        if step is None:
            return
        try:
            for observer in self._observers:
                observer.observe_step(step.kind, step.num_tokens, step.seconds)
        except Exception:
            log.exception("an observer failed on a step")

    def _end_all(self) -> None:
        """Nothing is left without an answer: not what runs, nor what was sent and not seen yet."""
        engine = self.engine
        with self._changed:
            self._closed = self._closed or engine.death or "the engine was stopped"
        self._carry_out()
        for request_id in list(self._streams):
            engine.abort(request_id)
        self._deliver(engine.take_ended())
        self._deliver([_failed(request_id, self._closed) for request_id in self._streams])


class _Stream:
    """Whom to tell of a request, and when that was done last for each of its samples."""

    __slots__ = ("on_delta", "times")

    def __init__(self, on_delta: OnDelta):
        self.on_delta = on_delta
        self.times: dict[int, float] = {}


def _ignore(delta: Delta) -> None:
    """Nobody listens any more."""


def _failed(request_id: str, error: str) -> Delta:
    """The only delta of a request that never ran."""
    now = time.monotonic()
    return Delta(request_id, [], finish=FinishReason.ERROR, error=error, arrival=now, finished=now)
