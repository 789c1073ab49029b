"""The load generator against servers of known behaviour, over real sockets and in processes of its own."""

import http.server
import json
import threading
import time
from concurrent import futures

import grpc
import pytest

from jaxllm.bench.clients import BenchError, Target
from jaxllm.bench.load import arrival_offsets, run_load
from jaxllm.bench.workloads import Prompt
from jaxllm.errors import ConfigError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

FAILING_TOKEN = 13
STEP = 0.02  # seconds between the chunks a fake server sends


class FakeInference(pb_grpc.InferenceServicer):
    """Sends two tokens a chunk, STEP apart; refuses prompts that begin with FAILING_TOKEN."""

    def __init__(self):
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    def GenerateStream(self, request, context):  # noqa: N802
        if request.token_ids.ids[0] == FAILING_TOKEN:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        for start in range(0, request.sampling.max_tokens, 2):
            time.sleep(STEP)
            yield pb.GenerateChunk(token_ids=[1] * min(2, request.sampling.max_tokens - start))
        with self.lock:
            self.running -= 1


@pytest.fixture
def grpc_server():
    service = FakeInference()
    server = grpc.server(futures.ThreadPoolExecutor(16))
    pb_grpc.add_InferenceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, Target("grpc", "127.0.0.1", port)
    server.stop(None).wait()


def test_grpc_records_count_every_token(grpc_server):
    service, target = grpc_server
    prompts = [Prompt([5] * (i + 1), i + 1) for i in range(8)]
    seen = []
    records, seconds = run_load(target, prompts, max_concurrency=4, num_processes=2, report=lambda *a: seen.append(a))
    assert [r.num_prompt for r in records] == [r.num_output for r in records] == list(range(1, 9))
    assert [len(r.arrivals) for r in records] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(r.error is None for r in records)
    assert all(r.ttft >= STEP for r in records)
    assert records[7].e2el >= 4 * STEP
    assert seconds >= records[7].e2el
    assert service.most_running <= 4
    assert seen[-1] == (8, 8, "requests")


def test_failures_are_counted_not_fatal(grpc_server):
    _, target = grpc_server
    records, _ = run_load(target, [Prompt([5], 2), Prompt([FAILING_TOKEN], 2)], num_processes=1)
    assert records[0].completed
    assert "RESOURCE_EXHAUSTED" in records[1].error
    with pytest.raises(BenchError, match=r"none of 1 requests completed.*the queue is full"):
        run_load(target, [Prompt([FAILING_TOKEN], 2)], num_processes=1)


class FakeCompletions(http.server.BaseHTTPRequestHandler):
    """/v1/completions in chunks cut at awkward places; one token short when the prompt begins with 7."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"][0] == FAILING_TOKEN:
            message = json.dumps({"error": {"message": "the queue is full"}}).encode()
            self.send_response(429)
            self.send_header("Content-Length", str(len(message)))
            self.end_headers()
            self.wfile.write(message)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tokens = body["max_tokens"] - (body["prompt"][0] == 7)
        events = [{"choices": [{"text": "x"}], "usage": None}] * tokens
        events.append({"choices": [], "usage": {"completion_tokens": tokens}})
        stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        for start in range(0, len(stream), 17):
            piece = stream[start : start + 17].encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments):
        pass


@pytest.fixture
def http_target():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeCompletions)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Target("http", "127.0.0.1", server.server_address[1], "any")
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_streams_are_read_across_chunk_borders(http_target):
    records, _ = run_load(http_target, [Prompt([5], 3), Prompt([7], 3), Prompt([FAILING_TOKEN], 3)], num_processes=1)
    assert (records[0].num_output, len(records[0].arrivals), records[0].error) == (3, 3, None)
    assert records[1].error == "2 tokens came, 3 were asked for"
    assert "HTTP 429" in records[2].error
    assert "the queue is full" in records[2].error


def test_a_poisson_process_has_its_rate():
    offsets = arrival_offsets(4000, 50.0, seed=0)
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert 4000 / offsets[-1] == pytest.approx(50, rel=0.05)
    assert arrival_offsets(3, float("inf"), 0) == [0, 0, 0]
    with pytest.raises(ConfigError, match="request_rate"):
        arrival_offsets(3, 0, 0)


def test_targets_are_parsed():
    assert Target.parse("grpc://localhost:50051") == Target("grpc", "localhost", 50051)
    assert Target.parse("http://[::1]:80/", "m") == Target("http", "::1", 80, "m")
    assert Target.parse("http://[::1]:80").address == "[::1]:80"
    for text in ("localhost:1", "https://a:1", "grpc://a", "grpc://:5"):
        with pytest.raises(ConfigError, match="target"):
            Target.parse(text)
