"""The process: what stops it, what it does before it stops, and what keeps it from starting."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import ROOT, SERVE, SMALL, Process, Server, serving, until

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

LONG = {"temperature": 0, "max_tokens": 450, "ignore_eos": True}


def start_streams(server: Server, count: int) -> tuple[list[threading.Thread], list[list[pb.GenerateChunk]]]:
    """Long answers under way, each read by a thread of its own."""
    chunks: list[list[pb.GenerateChunk]] = [[] for _ in range(count)]

    def read(mine: list[pb.GenerateChunk]) -> None:
        for chunk in server.inference.GenerateStream(pb.GenerateRequest(text="Once upon a time", sampling=LONG)):
            mine.append(chunk)  # noqa: PERF402 (seen by the test as they come)

    threads = [threading.Thread(target=read, args=(mine,), daemon=True) for mine in chunks]
    for thread in threads:
        thread.start()
    until(lambda: all(chunks), seconds=30)
    return threads, chunks


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code()


def post(url: str, body: dict) -> int:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_sigterm_lets_running_requests_end_and_takes_no_new_ones(stories: Path) -> None:
    with serving("--model", stories, "--http-port", "0", *SMALL) as server:
        threads, chunks = start_streams(server, 3)
        server.process.signal(signal.SIGTERM)
        until(lambda: not server.serving())
        assert code_of(lambda: server.inference.Generate(pb.GenerateRequest(text="x"))) is grpc.StatusCode.UNAVAILABLE
        assert post(f"{server.url}/v1/completions", {"model": "stories260K-hf", "prompt": "x"}) == 503
        assert not any(mine[-1].HasField("finish") for mine in chunks), "they were to be running still"
        for thread in threads:
            thread.join(60)
        for mine in chunks:
            assert mine[-1].finish.reason == pb.FINISH_REASON_LENGTH
            assert sum(len(chunk.token_ids) for chunk in mine) == 450
        assert server.process.exit_code(30) == 0
    assert "Traceback" not in server.process.output


def test_what_does_not_end_in_time_is_aborted(stories: Path) -> None:
    with serving("--model", stories, "--http-port", "-1", "--drain-seconds", "0.2", *SMALL) as server:
        assert not server.url
        threads, chunks = start_streams(server, 4)
        server.process.signal(signal.SIGTERM)
        assert server.process.exit_code(20) == 0
        for thread in threads:
            thread.join(10)
        assert [mine[-1].finish.reason for mine in chunks] == [pb.FINISH_REASON_ABORT] * 4
        assert "4 requests are aborted" in server.process.output


def test_a_dead_engine_is_told_to_everybody_and_ends_the_process(stories: Path) -> None:
    command = (sys.executable, Path(__file__).with_name("dying_server.py"), "serve")
    with serving("--model", stories, "--http-port", "0", *SMALL, command=command) as server:
        (front,) = server.process.children
        answer = server.inference.Generate(pb.GenerateRequest(token_ids={"ids": [1, 12]}, sampling={"max_tokens": 4}))
        assert len(answer.token_ids) <= 4
        running = server.inference.Generate.future(pb.GenerateRequest(text="x", sampling=LONG))
        until(lambda: server.load().running == 1)
        fatal = pb.GenerateRequest(token_ids={"ids": [1, 13]})
        with pytest.raises(grpc.RpcError) as raised:
            server.inference.Generate(fatal, timeout=30)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the device has fallen off the bus" in raised.value.details()
        assert running.exception(timeout=10).code() is grpc.StatusCode.UNAVAILABLE
        until(lambda: not server.serving(), seconds=1)
        assert code_of(lambda: server.inference.Generate(fatal, timeout=10)) is grpc.StatusCode.UNAVAILABLE
        assert post(f"{server.url}/v1/completions", {"model": "stories260K-hf", "prompt": "x"}) == 503
        assert server.process.exit_code(20) not in (0, None)
        assert "the engine died of RuntimeError: the device has fallen off the bus" in server.process.lines[-1]
        until(lambda: not Path(f"/proc/{front}").exists())


def test_a_front_that_dies_is_started_again_and_sigterm_twice_stops_at_once(stories: Path) -> None:
    with serving("--model", stories, "--http-port", "0", *SMALL) as server:
        body = {"model": "stories260K-hf", "prompt": "x", "max_tokens": 2}
        assert post(f"{server.url}/v1/completions", body) == 200
        (front,) = server.process.children
        os.kill(front, signal.SIGKILL)
        server.process.line("the HTTP front ended with code -9: starting it again", seconds=10)

        def answers() -> bool:
            try:
                return post(f"{server.url}/v1/completions", body) == 200
            except urllib.error.URLError:
                return False

        until(answers, seconds=60)

        _, chunks = start_streams(server, 4)
        server.process.signal(signal.SIGTERM)
        server.process.line("draining: 4 requests have 30 s to end", seconds=5)
        server.process.signal(signal.SIGTERM)
        assert server.process.exit_code(20) == 0
        until(lambda: all(mine[-1].finish.reason == pb.FINISH_REASON_ABORT for mine in chunks))


def test_while_loading_nothing_is_served_and_sigint_stops_at_once(stories: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = Process([*SERVE, "--model", str(stories), "--grpc-port", str(port), "--http-port", "0"])
    try:
        process.line("compiling", seconds=90)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.RpcError) as raised:
                pb_grpc.InferenceStub(channel).Generate(pb.GenerateRequest(text="x"), timeout=10)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "the model is still loading" in raised.value.details()
        started = time.monotonic()
        process.signal(signal.SIGINT)
        assert process.exit_code(15) == 0
        assert time.monotonic() - started < 10
        assert "ready" not in process.output
    finally:
        process.kill()


@pytest.mark.parametrize("flag", ["grpc", "http"])
def test_a_port_in_use_is_said_before_anything_is_loaded(stories: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"grpc": "0", "http": "0", flag: str(port)}
        result = subprocess.run(
            [*SERVE, "--model", str(stories), "--grpc-port", ports["grpc"], "--http-port", ports["http"]],
            cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
    assert result.returncode == 2
    assert f"{flag}_port={port}: cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"--{flag}-port" in result.stderr
    assert "loading weights" not in result.stderr
    assert not result.stdout


def test_a_checkpoint_without_a_tokenizer_is_refused_before_it_is_loaded(stories: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(stories / name)
    result = subprocess.run(
        [*SERVE, "--model", str(tmp_path), "--grpc-port", "0", "--http-port", "-1"],
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert "no tokenizer in" in result.stderr
    assert "loading weights" not in result.stderr
