"""The front as a process: what it imports, how it starts, how it ends."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from jaxllm.errors import ConfigError
from jaxllm.server.http.__main__ import listen, main


def test_it_imports_neither_jax_nor_the_engine():
    code = (
        "import sys, jaxllm.server.http.__main__\n"
        "rooms = ('engine', 'runner', 'models', 'layers', 'weights', 'cache', 'server.text')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'flax', 'transformers')\n"
        "       or name in [f'jaxllm.{room}' for room in rooms]])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_an_engine_it_answers_503_and_ends_when_told(number):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    command = [sys.executable, "-m", "jaxllm.server.http", "--grpc", target, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            assert httpx.get(url + "/health", timeout=20).status_code == 503
            assert httpx.post(url + "/v1/completions", json={"prompt": "x"}, timeout=20).status_code == 503
            assert httpx.get(url + "/metrics", timeout=20).status_code == 200
            process.send_signal(number)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode == 0
        assert "Traceback" not in errors


def test_a_port_in_use(capsys):
    with listen("127.0.0.1", 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"http_port={port}: cannot listen .* choose another --http-port"):
            listen("127.0.0.1", port)
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            assert main(["--grpc", "127.0.0.1:1", "--port", str(port)]) == 1
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
                signal.signal(number, handler)
    assert f"error: http_port={port}" in capsys.readouterr().err
