"""`jaxllm serve`: the engine and the gRPC service in this process, the OpenAI HTTP front in another.

Both ports are tried before the model loads, so that a wrong flag costs a second and not minutes; until the engine
is ready the health service says NOT_SERVING and requests are UNAVAILABLE. When it is, one line on standard output
says where:

    jaxllm: ready grpc=127.0.0.1:50051 http=http://127.0.0.1:8000

SIGTERM lets running requests end (for `drain_seconds` at most) and refuses new ones; a second SIGTERM, or SIGINT,
stops at once. When the engine dies its requests end with an error, the health service says so, and `run` raises
after a moment, for a supervisor to start the process anew.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from jaxllm.config import EngineConfig, ServerConfig
from jaxllm.engine import Engine, EngineClient
from jaxllm.errors import ConfigError, EngineDeadError
from jaxllm.loops import new_event_loop
from jaxllm.progress import progress
from jaxllm.server.access import Keys, check_tls, grpc_credentials
from jaxllm.server.front import Front
from jaxllm.server.grpc import service
from jaxllm.server.grpc.session import ChatOptions, Requests
from jaxllm.server.loading import load
from jaxllm.server.metrics import EngineMetrics
from jaxllm.server.outcome import OnOutcome
from jaxllm.server.text import Tokenizer
from jaxllm.server.tracing import Tracer

log = logging.getLogger(__name__)

DEAD_SECONDS = 2.0  # for the errors of a dead engine's requests to reach their clients
CLOSE_SECONDS = 1.0  # for open calls to end once nothing runs any more
STOP_SECONDS = 10.0  # for the engine's thread to end: a step of the device can be under way
LOOK_SECONDS = 0.1  # between two looks at the engine
# The engine's thread lets the interpreter lock go several times a step, and behind a busy event loop waits this long
# each time to have it back: with Python's 5 ms a 20 ms step of five such calls took 54 to 69 ms, with 1 ms 32 to 52.
SWITCH_SECONDS = 0.001


def run(engine_config: EngineConfig, server_config: ServerConfig, model_class: type | None = None) -> None:
    """Serve until a signal says otherwise.

    model_class: a module class to build in place of the architecture's own.

    Raises ConfigError or CheckpointError for what cannot be served, EngineDeadError when the engine died.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    server = _Server(engine_config, server_config, model_class)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(server.run())
    finally:
        if server.threads.busy:
            # A thread is still loading, or waits for a device that does not answer. The interpreter's own way out
            # would wait for it or pull the runtime away under it.
            failed = sys.exc_info()[1]
            if failed is not None:
                log.critical("%s", failed)
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0 if failed is None else 1)


def _trim_heap() -> None:
    """Give back what compiling has left free. The protobuf library does so every now and then, on the event loop, and
    the first time takes some tenths of a second."""
    with contextlib.suppress(AttributeError, OSError):  # a function of glibc's
        ctypes.CDLL(None).malloc_trim(0)


class _Server:
    def __init__(self, engine_config: EngineConfig, config: ServerConfig, model_class: type | None):
        self.threads = _Threads()
        self._engine_config = engine_config
        self._config = config
        self._model_class = model_class
        self._backend = service.Backend(_plain(engine_config, config))
        self._health = service.Health()
        self._client: EngineClient | None = None

    async def run(self) -> None:
        host, http_port = self._config.host, self._config.http_port
        self._signals = _Signals()
        keys = Keys.of(self._config)
        check_tls(self._config)
        endpoint = self._config.otlp_traces_endpoint
        self._tracer = Tracer(endpoint) if endpoint else None
        server = service.make_server(self._backend, self._health, keys, self._config.max_request_bytes)
        port = service.listen(server, host, self._config.grpc_port, grpc_credentials(self._config))
        if http_port > 0:
            _check_http_port(host, http_port)
        await self._health.set(False)
        await server.start()
        with tempfile.TemporaryDirectory(prefix="jaxllm-") as private:
            await self._serve(server, service.address(host, port), f"unix:{private}/engine")

    async def _serve(self, server: "service.grpc.aio.Server", address: str, door: str) -> None:
        """To the end. door: the HTTP front's way in: a socket that this user alone can open, without TLS or keys."""
        front = Front(door, self._config) if self._config.http_port >= 0 else None
        inner = service.make_server(self._backend, self._health)
        if front is not None:
            inner.add_insecure_port(door)
            await inner.start()
        self._front = asyncio.create_task(front.run()) if front else None
        try:
            if await self._unless_told(self._load()) and (front is None or await self._unless_told(front.ready.wait())):
                await self._health.set(True)
                where = f"grpc={address}" + (f" http={front.url}" if front else "")
                # In one piece: the front's log may go to the same place, and print() writes the line's end by itself.
                print(f"jaxllm: ready {where}\n", end="", flush=True)
                await self._unless_told(self._death())
                await self._drain()
        finally:
            await self._close(server, inner)

    async def _unless_told(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do something; False when a signal came first. Raises what ends the HTTP front, too."""
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(self._signals.told.wait())]
        try:
            watched = [*tasks, self._front] if self._front else tasks
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if self._front and self._front.done():
                self._front.result()
            if tasks[0].done():
                tasks[0].result()
            return not self._signals.told.is_set()
        finally:
            for task in tasks:
                task.cancel()

    async def _load(self) -> None:
        """Load the model in a thread, while this one answers that it loads."""
        engine, tokenizer, chats = await self.threads.run(self._load_now)
        self._client = client = EngineClient(engine)
        runner: Any = engine.runner  # the engine's view of it is narrower
        metrics = EngineMetrics(client, runner.table)
        self._backend.config = _plain(engine.config, self._config)
        self._backend.engine = service.Engine(
            Requests(client, tokenizer, chats, self._config, self._listeners(engine.info.name)),
            runner.memory_plan.device,
            metrics.render,
        )

    def _load_now(self) -> tuple[Engine, Tokenizer | None, ChatOptions]:
        with progress() as report:
            loaded = load(self._engine_config, self._config, self._model_class, report)
        # All of this stays. Looked over by a full collection, it would hold up every stream for 0.1 to 0.2 s.
        gc.collect()
        gc.freeze()
        _trim_heap()
        return loaded

    def _listeners(self, model: str) -> list[OnOutcome]:
        """Who is told of each request that has ended."""
        listeners: list[OnOutcome] = []
        if self._config.enable_log_requests:
            listeners.append(lambda outcome: log.info("%s", outcome))
        if (tracer := self._tracer) is not None:
            listeners.append(lambda outcome: tracer.record(outcome, model))
        return listeners

    async def _death(self) -> None:
        """Raises EngineDeadError when the engine has died and its clients have been told."""
        assert self._client is not None
        while self._client.alive:
            await asyncio.sleep(LOOK_SECONDS)
        await self._health.set(False)
        await asyncio.sleep(DEAD_SECONDS)
        raise EngineDeadError(self._client.engine.death or "the engine's thread has ended; the log has the details")

    async def _drain(self) -> None:
        """Let what runs end: for a while, and no longer when told again."""
        assert self._client is not None
        assert self._backend.engine is not None
        engine = self._backend.engine
        engine.requests.refusal = "the server is shutting down: send the request to another one, or again later"
        await self._health.set(False)
        log.info("draining: %d requests have %g s to end", engine.running, self._config.drain_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_seconds):
                while engine.running and not self._signals.at_once:
                    await asyncio.sleep(LOOK_SECONDS)
        if engine.running:
            log.warning("%d requests are aborted", engine.running)
        if not self._client.alive:
            raise EngineDeadError(self._client.engine.death or "the engine's thread has ended; the log has the details")

    async def _close(self, *servers: "service.grpc.aio.Server") -> None:
        """End everything within a bounded time, the engine first: so every client hears how its request ended."""
        await self._health.set(False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                if self._client is not None:
                    await self.threads.run(self._client.stop)
        if self._front is not None:
            self._front.cancel()
            await asyncio.gather(self._front, return_exceptions=True)
        await asyncio.gather(*(server.stop(CLOSE_SECONDS) for server in servers))
        if self._tracer is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self.threads.run(self._tracer.close)


class _Signals:
    """What the process was told. `told`: to end. `at_once`: not to wait for what runs."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.at_once = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._take, signal.SIGTERM)
        loop.add_signal_handler(signal.SIGINT, self._take, signal.SIGINT)

    def _take(self, number: signal.Signals) -> None:
        self.at_once = self.at_once or self.told.is_set() or number is signal.SIGINT
        self.told.set()
        log.info("%s: %s", number.name, "stopping" if self.at_once else "ending")


class _Threads:
    """Work beside the event loop, on threads that do not keep the process alive."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    async def run[T](self, function: Callable[[], T]) -> T:
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
        return await asyncio.wrap_future(future)


def _check_http_port(host: str, port: int) -> None:
    """ConfigError when the front could not listen there."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(where[:2], family=family).close()
    except OSError as error:
        raise ConfigError(
            f"http_port={port}: cannot listen on {service.address(host, port)} ({error.strerror}); "
            "stop what holds it, or choose another with --http-port (0 takes a free one, -1 starts no HTTP front)"
        ) from error


def _plain(*configs: EngineConfig | ServerConfig) -> dict[str, Any]:
    """Every field but the secret ones, as JSON has them."""
    fields = {
        field.name: getattr(config, field.name)
        for config in configs
        for field in dataclasses.fields(config)
        if not field.metadata["secret"]
    }
    return {name: list(map(_named, value)) if isinstance(value, tuple) else value for name, value in fields.items()}


def _named(value: Any) -> Any:
    """A class by its name, all else as it is."""
    return f"{value.__module__}:{value.__qualname__}" if isinstance(value, type) else value
