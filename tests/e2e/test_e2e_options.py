"""One server with every door locked: TLS with clients' certificates, keys, limits; traced, logged, by several names."""

import contextlib
import json
import os
import secrets
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from processes import SERVE, SMALL, Process, until

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

KEYS = [secrets.token_urlsafe() for _ in range(2)]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            names = [pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"]
            self.services.update(names)
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def span(self, request_id: str) -> Span:
        """The one of this request, once it has come."""
        found: list[Span] = []

        def come() -> bool:
            found[:] = [span for span in self.spans if attributes(span)["gen_ai.request.id"] == request_id]
            return bool(found)

        until(come, seconds=20)
        (span,) = found
        return span


def attributes(span: Span) -> dict[str, Any]:
    def value(wire: Any) -> Any:
        kind = wire.WhichOneof("value")
        return [value(item) for item in wire.array_value.values] if kind == "array_value" else getattr(wire, kind)

    return {pair.key: value(pair.value) for pair in span.attributes}


@dataclass
class Locked:
    process: Process
    url: str
    address: str
    collector: Collector
    tls: ssl.SSLContext
    credentials: grpc.ChannelCredentials
    root: bytes

    def post(self, body: dict[str, Any], path: str = "/v1/completions", **headers: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {KEYS[0]}", **headers}
        return httpx.post(self.url + path, json=body, headers=headers, verify=self.tls, timeout=60)


@pytest.fixture(scope="module")
def locked(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    directory = tmp_path_factory.mktemp("locked")
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@example.org")
    for name, issued in (("server", server), ("client", client)):
        issued.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
    authority.cert_pem.write_to_path(str(directory / "authority.pem"))
    (directory / "keys").write_text(KEYS[1] + "\n")

    collector = Collector()
    receiver = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    endpoint = f"http://127.0.0.1:{receiver.add_insecure_port('127.0.0.1:0')}"
    receiver.start()

    options = {
        "model": str(stories), "served-model-name": ["stories", "tales"], "http-port": 0, "grpc-port": 0,
        "ssl-certfile": str(directory / "server.pem"), "ssl-ca-certs": str(directory / "authority.pem"),
        "api-key-file": str(directory / "keys"), "otlp-traces-endpoint": endpoint, "enable-log-requests": True,
        "max-queued": 2, "max-samples": 3, "generation-config": "vllm",
        "override-generation-config": {"temperature": 0, "max_tokens": 7},
    }  # fmt: skip
    (directory / "serve.json").write_text(json.dumps(options))  # which is YAML, too
    added = {"JAXLLM_API_KEY": KEYS[0], "OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_SERVICE_NAME": "locked"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in added.items():
            patch.setenv(name, value)
        process = Process([*SERVE, "--config", str(directory / "serve.json"), *SMALL])
    try:
        ready = dict(part.split("=", 1) for part in process.line("jaxllm: ready ").split()[2:])
        tls = ssl.create_default_context(cafile=str(directory / "authority.pem"))
        tls.load_cert_chain(str(directory / "client.pem"))
        chain = b"".join(part.bytes() for part in client.cert_chain_pems)
        root = authority.cert_pem.bytes()
        credentials = grpc.ssl_channel_credentials(root, client.private_key_pem.bytes(), chain)
        yield Locked(process, ready["http"], ready["grpc"], collector, tls, credentials, root)
    finally:
        process.kill()
        receiver.stop(None)
        assert not any(key in process.output for key in KEYS)


def test_openais_client_comes_in_with_certificate_and_key(locked: Locked):
    assert locked.url.startswith("https://")
    with httpx.Client(verify=locked.tls) as http:
        for key in KEYS:
            client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, http_client=http, max_retries=0)
            assert [model.id for model in client.models.list()] == ["stories", "tales"]
            answer = client.completions.create(model="tales", prompt="Once upon a time", max_tokens=4)
            assert answer.model == "stories"
            assert answer.usage.completion_tokens == 4
            # What --override-generation-config says where the request says nothing.
            assert client.completions.create(model="tales", prompt="Once").usage.completion_tokens == 7
        client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", http_client=http, max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            client.completions.create(model="tales", prompt="Once")


def test_nobody_else_comes_in(locked: Locked):
    stranger = ssl.create_default_context(cadata=locked.root.decode())
    for context in (stranger, True):  # without a certificate, and not trusting the server's
        with pytest.raises(httpx.TransportError):
            httpx.get(locked.url + "/health", verify=context, timeout=20)
    with pytest.raises(httpx.TransportError):
        httpx.get(locked.url.replace("https", "http") + "/health", timeout=20)
    for credentials in (grpc.ssl_channel_credentials(locked.root), None):
        with grpc_channel(locked, credentials) as channel, pytest.raises(grpc.RpcError) as raised:
            pb_grpc.ControlStub(channel).GetMetrics(pb.GetMetricsRequest(), timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


@contextlib.contextmanager
def grpc_channel(locked: Locked, credentials: grpc.ChannelCredentials | None) -> Iterator[grpc.Channel]:
    secure = credentials is not None
    with (
        grpc.secure_channel(locked.address, credentials) if secure else grpc.insecure_channel(locked.address) as channel
    ):
        yield channel


def test_grpc_comes_in_with_certificate_and_key(locked: Locked):
    with grpc_channel(locked, locked.credentials) as channel:
        stub = pb_grpc.InferenceStub(channel)
        request = pb.GenerateRequest(text="Once upon a time", model="tales")
        with pytest.raises(grpc.RpcError) as raised:
            stub.Generate(request, timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        bearer = ("authorization", f"Bearer {KEYS[1]}")
        name = secrets.token_hex()
        response, call = stub.Generate.with_call(request, metadata=(bearer, ("x-request-id", name)), timeout=60)
        assert dict(call.initial_metadata())["x-request-id"] == name
        # What --override-generation-config says where the request says nothing.
        assert response.counts.completion == 7
        assert stub.Generate(request, metadata=(bearer,), timeout=60).text == response.text  # greedy
        assert response.timings.total_seconds >= response.timings.decode_seconds > 0
        info = pb_grpc.ControlStub(channel).GetServerInfo(pb.GetServerInfoRequest(), metadata=(bearer,), timeout=20)
        assert "api_key" not in info.config
        assert not any(key in str(info) for key in KEYS)
        assert attributes(locked.collector.span(name))["gen_ai.usage.completion_tokens"] == 7


def test_a_request_is_named_timed_logged_and_traced(locked: Locked):
    name, trace, parent = secrets.token_hex(8), secrets.token_hex(16), secrets.token_hex(8)
    body = {"prompt": "Once upon a time", "max_tokens": 5, "n": 2, "temperature": 0.5, "top_p": 0.75}
    began = time.time()
    answer = locked.post(
        {**body, "return_timings": True}, **{"x-request-id": name, "traceparent": f"00-{trace}-{parent}-01"}
    )
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, name)
    for choice in answer.json()["choices"]:
        timings = choice["timings"]
        stages = timings["queue_seconds"] + timings["prefill_seconds"] + timings["decode_seconds"]
        assert 0 < stages <= timings["total_seconds"] + 1e-6
    line = locked.process.line(f"({name})", 10)  # it may come after the answer
    assert "length, length" in line
    assert "10 new" in line
    assert "Once" not in line

    span = locked.collector.span(name)
    assert (span.name, span.kind) == ("llm_request", Span.SPAN_KIND_SERVER)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    assert began - 1 < span.start_time_unix_nano / 1e9 < span.end_time_unix_nano / 1e9 < time.time() + 1
    found = attributes(span)
    assert found["gen_ai.response.model"] == "stories"
    assert found["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert (found["gen_ai.request.max_tokens"], found["gen_ai.request.n"]) == (5, 2)
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.top_p"]) == (0.5, 0.75)
    assert found["gen_ai.usage.completion_tokens"] == 10
    assert found["gen_ai.usage.prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert 0 < found["gen_ai.latency.time_to_first_token"] <= found["gen_ai.latency.e2e"]
    assert 0 <= found["gen_ai.latency.time_in_queue"] < found["gen_ai.latency.e2e"]
    assert locked.collector.services == {"locked"}


def test_refusals_are_traced_as_errors_and_limits_are_named(locked: Locked):
    name = secrets.token_hex(8)
    answer = locked.post({"prompt": "Once", "n": 4}, **{"x-request-id": name})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    assert "at most 3 here (--max-samples)" in answer.json()["error"]["message"]
    assert locked.collector.span(name).status.code == Status.STATUS_CODE_ERROR


def test_a_full_queue_says_when_to_come_again(locked: Locked):
    """Four run, two wait, and of the rest some are refused."""
    long = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(locked.post, [long] * 16))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in refused:
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "queue_full"


def test_without_opentelemetry_the_error_says_what_to_install(tmp_path: Path):
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry/__init__.py").write_text("raise ImportError('gone', name='opentelemetry')")
    path = f"PYTHONPATH={tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    process = Process(["env", path, *SERVE, "--otlp-traces-endpoint", "http://127.0.0.1:1", "--grpc-port", "0"])
    try:
        assert process.exit_code(60) == 2
        assert "pip install 'jaxllm[otel]'" in process.output
    finally:
        process.kill()
