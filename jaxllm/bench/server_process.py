"""A server of our own for the time of a benchmark."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jaxllm.bench.clients import BenchError

STOP_SECONDS = 60.0


@contextmanager
def started_server(arguments: list[str], environment: Mapping[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Run `jaxllm serve` with these arguments on free ports; yields {"grpc": "host:port", "http": "http://host:port"}.

    Its log goes to standard error. Ends it with SIGTERM, and with SIGKILL if that takes over a minute.
    """
    command = [sys.executable, "-m", "jaxllm", "serve", "--grpc-port", "0", "--http-port", "0", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    try:
        for line in server.stdout:
            if line.startswith("jaxllm: ready "):
                yield dict(part.split("=", 1) for part in line.removeprefix("jaxllm: ready ").split())
                return
        raise BenchError(f"the server ended with status {server.wait()} before it was ready; see its log above")
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()
