"""A server as users start it: a process of its own, reached over its sockets."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[2]
SERVE = (sys.executable, "-m", "jaxllm", "serve")
START_SECONDS = 120
SMALL = ("--max-num-seqs", "4", "--max-num-batched-tokens", "64")  # few programs: a quick start


def is_front(process: psutil.Process) -> bool:
    return "jaxllm.server.http" in process.cmdline()


class Process:
    """A server's process; its output is kept."""

    def __init__(self, arguments: Sequence[str]):
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._new: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._new.put(line)
        self._new.put(None)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def line(self, text: str, seconds: float = START_SECONDS) -> str:
        """The first line from here on that holds the text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                line = self._new.get(timeout=max(0.0, end - time.monotonic()))
                if line is None:
                    break
                if text in line:
                    return line.strip()
        raise AssertionError(f"no line with {text!r}:\n{self.output}")

    @property
    def children(self) -> list[int]:
        """Process ids: the HTTP front's, if there is one. (Grammars are tried out in another.)"""
        return [child.pid for child in psutil.Process(self.process.pid).children() if is_front(child)]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_code(self, seconds: float) -> int:
        """Waits for the end, all of its output included."""
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """For the end of a test: nothing may stay behind, the HTTP front neither."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass
class Server:
    """A process that serves, and clients of it."""

    process: Process
    address: str
    url: str
    channel: grpc.Channel
    inference: pb_grpc.InferenceStub
    control: pb_grpc.ControlStub
    health: health_pb2_grpc.HealthStub

    def load(self) -> pb.GetLoadResponse:
        return self.control.GetLoad(pb.GetLoadRequest(), timeout=10)

    def serving(self) -> bool:
        response = self.health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return response.status == health_pb2.HealthCheckResponse.SERVING


@contextlib.contextmanager
def serving(*arguments: object, command: Sequence[object] = SERVE) -> Iterator[Server]:
    """A server on free ports, once it is ready; ended behind the block."""
    process = Process([*map(str, command), "--grpc-port", "0", *map(str, arguments)])
    try:
        ready = dict(part.split("=", 1) for part in process.line("jaxllm: ready ").split()[2:])
        with grpc.insecure_channel(ready["grpc"]) as channel:
            yield Server(
                process,
                ready["grpc"],
                ready.get("http", ""),
                channel,
                pb_grpc.InferenceStub(channel),
                pb_grpc.ControlStub(channel),
                health_pb2_grpc.HealthStub(channel),
            )
    finally:
        process.kill()


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not true after {seconds} s"
        time.sleep(0.02)
