"""Starts the HTTP front: `python -m jaxllm.server.http --grpc 127.0.0.1:50051 --host 127.0.0.1 --port 8000`.

Prints `http://HOST:PORT` on standard output once it listens. It answers 503 until the engine can be reached, and
again whenever it cannot. SIGTERM ends it when the running answers are through (bounded), SIGINT likewise.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import uvicorn

from jaxllm.config import ServerConfig
from jaxllm.errors import ConfigError
from jaxllm.server.access import check_tls
from jaxllm.server.http.app import build

ORPHAN_SECONDS = 10.0
"""How long a front outlives the engine's process that started it, to tell clients what is the matter."""
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that none is closed just as a request comes over it."""

log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. ConfigError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # The protocol is named because asyncio turns Nagle's algorithm off only where it is.
        with contextlib.ExitStack() as failure:
            listener = failure.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
            failure.pop_all()
            return listener
    except OSError as error:
        raise ConfigError(
            f"http_port={port}: cannot listen on {host}:{port} ({error.strerror}); "
            "stop what holds it, or choose another --http-port (0 takes a free one)"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxllm.server.http", description="The OpenAI HTTP front.")
    parser.add_argument("--grpc", required=True, metavar="HOST:PORT", help="the engine's gRPC service")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for a free one (default 8000)")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="how long answers may take to end at the end")
    parser.add_argument(
        "--with-parent", action="store_true", help=f"end {ORPHAN_SECONDS:g} s after the process that started this one"
    )
    parser.add_argument(
        "--settings", metavar="FILE", help="a JSON object of further options of `jaxllm serve`; - is standard input"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # uvicorn raises the signal again when it has shut down: this makes that an ordinary end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        settings = _settings(options.settings)
        check_tls(settings)
        app = build(options.grpc, settings)
        listener = listen(options.host, options.port)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(options.drain_seconds)),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_ca_certs=settings.ssl_ca_certs,
        ssl_cert_reqs=ssl.CERT_REQUIRED if settings.ssl_ca_certs else ssl.CERT_NONE,
    )
    server = uvicorn.Server(config)
    if options.with_parent:
        threading.Thread(target=_outlive, args=(os.getppid(), server), daemon=True).start()
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.ssl_certfile else "http"
    print(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    gc.collect()
    gc.freeze()  # what is there now stays, and no collection is to look it over while streams wait
    server.run(sockets=[listener])
    return 0


def _settings(path: str | None) -> ServerConfig:
    """What the process that starts this one says; by standard input, where nobody else reads its keys."""
    if path is None:
        return ServerConfig()
    try:
        return ServerConfig(**json.loads(sys.stdin.readline() if path == "-" else Path(path).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--settings {path}: {error}") from None


def _outlive(parent: int, server: uvicorn.Server) -> None:
    """Ends the server a while after its parent has gone, so that the port is free for the next one."""
    while os.getppid() == parent:
        time.sleep(0.5)
    log.warning("the process that started this one is gone: answering 503 for %g s more", ORPHAN_SECONDS)
    time.sleep(ORPHAN_SECONDS)
    server.should_exit = True


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
