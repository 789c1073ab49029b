"""Runs a batch file: the engine, its gRPC service on a private socket, the HTTP application before it, all in here."""

import asyncio
import contextlib
import functools
import json
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllm.config import EngineConfig, ServerConfig
from jaxllm.engine import EngineClient
from jaxllm.errors import ConfigError, EngineDeadError, RequestError
from jaxllm.progress import Report, reporting
from jaxllm.server.batch.files import Answers, Line, count_lines, custom_id_of, name_of, read_lines
from jaxllm.server.grpc import service
from jaxllm.server.grpc.session import Requests
from jaxllm.server.http.app import build
from jaxllm.server.loading import load
from jaxllm.server.main import SWITCH_SECONDS

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # between two looks at whether the application has reached the engine
RETRY_SECONDS = 0.5  # before a line is tried again that had no room beside the others
PASSING = (429, 503)
"""Refusals that say nothing of the line: there was no room, or the way to the engine was lost."""


@dataclass
class Summary:
    """How many lines were answered, how many of these with an error, and how many had been before."""

    answered: int = 0
    errors: int = 0
    skipped: int = 0


def run(
    source: Path, target: Path, engine_config: EngineConfig, server_config: ServerConfig, progress: Report | None = None
) -> Summary:
    """Answer every line of `source` that has no answer in `target` yet, and append the answers there.

    progress: bars on a terminal where it is None. Raises ConfigError, CheckpointError, EngineDeadError; what was
    answered until then stands in `target`, and another run goes on from there.
    """
    if not source.is_file():
        raise ConfigError(f"{source}: no such file; name a file of requests, one JSON object a line")
    if target.exists() and source.samefile(target):
        raise ConfigError(f"{target}: holds the requests; name another file for the answers")
    sys.setswitchinterval(SWITCH_SECONDS)
    with Answers(target) as answers, reporting(progress) as report:
        if not answers.lack(source):
            return Summary(skipped=count_lines(source))
        engine, tokenizer, chats = load(engine_config, server_config, None, report)
        client = EngineClient(engine)
        make_requests = functools.partial(Requests, client, tokenizer, chats, server_config)
        return asyncio.run(_run(client, make_requests, server_config, source, answers, report))


async def _run(
    client: EngineClient,
    make_requests: Callable[[], Requests],
    config: ServerConfig,
    source: Path,
    answers: Answers,
    report: Report,
) -> Summary:
    """make_requests: to be called on the event loop. The client is stopped at the end."""
    try:
        async with _application(make_requests, config) as app:
            batch = Batch(client, app, answers)
            total = await asyncio.to_thread(count_lines, source)
            async with asyncio.TaskGroup() as tasks:
                for done, (number, raw) in enumerate(read_lines(source)):
                    report(done, total, "requests")
                    await batch.start(tasks, number, raw)
            report(total, total, "requests")
            return batch.summary
    except BaseExceptionGroup as group:  # the first of them ended the others
        raise group.exceptions[0] from None
    finally:
        await asyncio.to_thread(client.stop)  # while this loop still hears of what ends thereby


class Batch:
    """Lines on their way through the application.

    Attributes:
        summary: of what is done.
    """

    def __init__(self, client: EngineClient, app: "Application", answers: Answers):
        self.summary = Summary()
        self._client = client
        self._app = app
        self._answers = answers
        # As many as keep every step full while answers are written and the next lines are read.
        self._room = asyncio.Semaphore(min(client.capacity, 2 * client.engine.runner.scheduler_config.max_num_seqs))
        self._seen: set[str] = set()
        self._posted = 0  # lines that the application works on
        self._alone = asyncio.Lock()

    async def start(self, tasks: asyncio.TaskGroup, number: int, raw: bytes) -> None:
        """Begin with a line, once there is room for it, unless it has its answer."""
        line_id = name_of(number)
        known = line_id in self._answers.line_ids
        try:
            line = Line.parse(raw)
        except RequestError as error:
            if known:
                self.summary.skipped += 1
            else:
                self._refuse(line_id, custom_id_of(raw), "invalid_line", f"line {number}: {error}")
            return
        repeated = line.custom_id in self._seen
        self._seen.add(line.custom_id)
        if known or (not repeated and line.custom_id in self._answers.custom_ids):
            self.summary.skipped += 1
        elif repeated:
            message = f"line {number}: an earlier line has the same custom_id; give each its own"
            self._refuse(line_id, line.custom_id, "duplicate_custom_id", message)
        else:
            await self._room.acquire()
            tasks.create_task(self._answer(line_id, line))

    async def _answer(self, line_id: str, line: Line) -> None:
        try:
            status, request_id, body = await self._post(line)
            if status in PASSING:
                status, request_id, body = await self._post_alone(line)
            self._answers.answer(line_id, line.custom_id, status, request_id, body)
            self.summary.answered += 1
            self.summary.errors += status != 200
        finally:
            self._room.release()

    async def _post_alone(self, line: Line) -> tuple[int, str | None, bytes]:
        """Try again until it is answered, or nothing else is at work that could have been in its way."""
        async with self._alone:
            while True:
                others = self._posted
                answer = await self._post(line)
                if answer[0] not in PASSING or others == 0:
                    return answer
                await asyncio.sleep(RETRY_SECONDS)

    async def _post(self, line: Line) -> tuple[int, str | None, bytes]:
        """Raises EngineDeadError where the answer says no more than that."""
        self._posted += 1
        try:
            answer = await self._app.post(line.url, json.dumps(line.body).encode())
        finally:
            self._posted -= 1
        if not self._client.alive:
            raise EngineDeadError(self._client.engine.death or "the engine's thread has ended; the log has the details")
        return answer

    def _refuse(self, line_id: str, custom_id: str | None, code: str, message: str) -> None:
        self._answers.refuse(line_id, custom_id, code, message)
        self.summary.answered += 1
        self.summary.errors += 1


class Application:
    """An ASGI application, asked without a socket."""

    def __init__(self, app: Any):
        self._app = app

    async def post(self, url: str, body: bytes) -> tuple[int, str | None, bytes]:
        """Status, request id and body of the answer, which is JSON."""
        path = url.partition("?")[0]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": None,
            "server": None,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }  # fmt: skip
        unread, status, headers, parts = [body], 500, {}, []

        async def receive() -> dict[str, Any]:
            if not unread:
                await asyncio.Event().wait()  # nobody leaves
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], dict(message["headers"])
            else:
                parts.append(message.get("body", b""))

        try:
            await self._app(scope, receive, send)
        except Exception:  # it has answered with status 500 before
            log.exception("%s failed", url)
        request_id = headers.get(b"x-request-id")
        return status, request_id.decode() if request_id else None, b"".join(parts) or b"null"


@contextlib.asynccontextmanager
async def _application(make_requests: Callable[[], Requests], config: ServerConfig) -> AsyncIterator[Application]:
    """The HTTP application before the engine's service, on a socket in a folder that is this user's alone."""
    backend, health = service.Backend({}), service.Health()
    server = service.make_server(backend, health)
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/engine"
        server.add_insecure_port(address)
        backend.engine = service.Engine(make_requests(), device="", metrics=lambda openmetrics: "")
        await health.set(True)
        await server.start()
        app = build(address, config)
        try:
            async with app.router.lifespan_context(app):
                while not await app.state.link.healthy():
                    await asyncio.sleep(LOOK_SECONDS)
                yield Application(app)
        finally:
            await server.stop(None)
