"""Keeps the HTTP front's process running, from the process that it speaks for."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import sys
import time

from jaxllm.config import ServerConfig
from jaxllm.errors import ConfigError, JaxllmError

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0  # for its last answers, when nothing is being computed for them any more
SHORT_SECONDS = 10.0  # a life shorter than this counts as a failed start
MAX_SHORT_LIVES = 3  # in a row; then something is wrong that starting it again does not mend


class Front:
    """The HTTP front as a process of its own.

    Attributes:
        url: where it listens, once `ready` is set.
    """

    def __init__(self, grpc_address: str, config: ServerConfig):
        self.url = ""
        self.ready = asyncio.Event()
        self._grpc_address = grpc_address
        self._host = config.host
        self._port = config.http_port
        self._settings = json.dumps(dataclasses.asdict(config)).encode() + b"\n"

    async def run(self) -> None:
        """Start it, and start it again on the same port when it ends; stop it when cancelled.

        Raises ConfigError when it cannot be started at all, JaxllmError when it keeps ending.
        """
        short_lives = 0
        while True:
            started = time.monotonic()
            code = await self._live()
            if not self.ready.is_set():
                raise ConfigError(
                    f"http_port={self._port}: the HTTP front did not start (exit code {code}, its message is above); "
                    "choose another port with --http-port (0 takes a free one, -1 starts no front)"
                )
            short_lives = short_lives + 1 if time.monotonic() - started < SHORT_SECONDS else 0
            if short_lives == MAX_SHORT_LIVES:
                raise JaxllmError(f"the HTTP front ended {short_lives} times soon after its start: its log is above")
            log.error("the HTTP front ended with code %d: starting it again", code)
            await asyncio.sleep(short_lives)

    async def _live(self) -> int:
        """One life of the process; its exit code."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jaxllm.server.http"),
            *("--grpc", self._grpc_address, "--host", self._host, "--port", str(self._port)),
            *("--drain-seconds", str(STOP_SECONDS), "--with-parent", "--settings", "-"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal reaches a whole group; this one is told by its parent, when it is time.
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(self._settings)
            process.stdin.close()
            if line := await process.stdout.readline():
                self.url = line.decode().strip()
                self._port = int(self.url.rpartition(":")[2])
                self.ready.set()
            return await process.wait()
        finally:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_SECONDS + 1):
            await process.wait()
            return
    process.kill()
    await process.wait()
