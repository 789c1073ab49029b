"""Keys, TLS, limits and names over gRPC, on real sockets."""

import contextlib
import dataclasses
import logging
import secrets
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from jaxllm.config import ServerConfig
from jaxllm.core import FinishReason
from jaxllm.errors import ConfigError
from jaxllm.server.access import Keys, check_tls, grpc_credentials
from jaxllm.server.grpc import service
from jaxllm.server.grpc.session import Requests
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc
from jaxllm.server.outcome import Outcome

KEY = secrets.token_urlsafe()


@contextlib.asynccontextmanager
async def serving(engine, tokenizer, config, outcomes=None):
    """A server as main.py makes one; yields its port."""
    backend, health = service.Backend({}), service.Health()
    check_tls(config)
    server = service.make_server(backend, health, Keys.of(config), config.max_request_bytes)
    port = service.listen(server, "127.0.0.1", 0, grpc_credentials(config))
    await server.start()
    listeners = [] if outcomes is None else [outcomes.append]
    backend.engine = service.Engine(
        Requests(engine, tokenizer, None, config, listeners), "cpu", lambda openmetrics: "jaxllm_up 1\n"
    )
    await health.set(True)
    try:
        yield port
    finally:
        await server.stop(None)


def ask(channel, metadata=None, **fields):
    request = pb.GenerateRequest(text="x", **fields)
    return pb_grpc.InferenceStub(channel).Generate(request, metadata=metadata, timeout=10)


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def test_calls_need_a_key(engine, tokenizer):
    async with (
        serving(engine, tokenizer, ServerConfig(api_key=("other", KEY))) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        inference, control = pb_grpc.InferenceStub(channel), pb_grpc.ControlStub(channel)
        for metadata in ((), (("authorization", KEY),), (("authorization", f"Bearer {KEY}x"),), (("x-api-key", "no"),)):
            for call in (
                lambda m: inference.Tokenize(pb.TokenizeRequest(text="x"), metadata=m, timeout=10),
                lambda m: control.GetServerInfo(pb.GetServerInfoRequest(), metadata=m, timeout=10),
                lambda m: inference.GenerateStream(pb.GenerateRequest(text="x"), metadata=m, timeout=10).read(),
                lambda m: inference.Session(metadata=m, timeout=10).read(),  # before it has said anything
            ):
                error = await code_of(call(metadata))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "Bearer" in error.details()
                assert KEY not in error.details()
        for metadata in ((("authorization", f"Bearer {KEY}"),), (("x-api-key", KEY),)):
            response = await inference.Tokenize(pb.TokenizeRequest(text="xy"), metadata=metadata, timeout=10)
            assert response.token_ids
        # What watches the server has none.
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert (await control.GetMetrics(pb.GetMetricsRequest(), timeout=10)).text == "jaxllm_up 1\n"
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert (await code_of(reflect(iter([request])).read())).code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def certificates(authority, tmp_path) -> dict[str, str]:
    """The options of a server with TLS, and what belongs to it."""
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")}
    server = authority.issue_cert("127.0.0.1")
    Path(paths["ssl_certfile"]).write_bytes(b"".join(part.bytes() for part in server.cert_chain_pems))
    server.private_key_pem.write_to_path(paths["ssl_keyfile"])
    authority.cert_pem.write_to_path(paths["ssl_ca_certs"])
    return paths


async def test_tls(engine, tokenizer, authority, certificates):
    del certificates["ssl_ca_certs"]
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    async with serving(engine, tokenizer, ServerConfig(**certificates)) as port:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.secure_channel(address, trusting) as channel:
            response = await pb_grpc.InferenceStub(channel).Tokenize(pb.TokenizeRequest(text="x"), timeout=10)
            assert response.token_ids
        stranger = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
        for channel in (grpc.aio.insecure_channel(address), grpc.aio.secure_channel(address, stranger)):
            async with channel:
                assert (await code_of(ask(channel))).code() is grpc.StatusCode.UNAVAILABLE


async def test_clients_show_certificates(engine, tokenizer, authority, certificates):
    root = authority.cert_pem.bytes()

    def client(signer):
        issued = signer.issue_cert("client@example.org")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return grpc.ssl_channel_credentials(root, issued.private_key_pem.bytes(), chain)

    async with serving(engine, tokenizer, ServerConfig(**certificates)) as port:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.secure_channel(address, client(authority)) as channel:
            await pb_grpc.InferenceStub(channel).Tokenize(pb.TokenizeRequest(text="x"), timeout=10)
        for credentials in (grpc.ssl_channel_credentials(root), client(trustme.CA())):
            async with grpc.aio.secure_channel(address, credentials) as channel:
                assert (await code_of(ask(channel))).code() is grpc.StatusCode.UNAVAILABLE


def test_certificates_that_cannot_be_used(certificates, tmp_path):
    check_tls(ServerConfig(**certificates))
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    foreign = tmp_path / "foreign.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(str(foreign))
    for name, path, why in (
        ("ssl_certfile", broken, "both must be PEM"), ("ssl_keyfile", broken, "both must be PEM"),
        ("ssl_keyfile", foreign, "belong"), ("ssl_ca_certs", broken, "no certificates"),
        ("ssl_keyfile", tmp_path / "nowhere", "ssl_keyfile=.* cannot be read"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            check_tls(ServerConfig(**{**certificates, name: str(path)}))
    with pytest.raises(ConfigError, match="TLS needs a certificate"):
        ServerConfig(ssl_keyfile=str(foreign))


async def test_limits(engine, tokenizer):
    config = ServerConfig(max_samples=4, max_stop_strings=2, max_request_bytes=2000)
    async with (
        serving(engine, tokenizer, config) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        for name, sampling in (
            ("n", {"n": 5}), ("best_of", {"n": 2, "best_of": 5}), ("stop", {"stop": ["a", "b", "c"]}),
            ("stop", {"stop": ["a", "b" * 1025]}),
        ):  # fmt: skip
            error = await code_of(ask(channel, sampling=pb.Sampling(**sampling)))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert dict(error.trailing_metadata())["jaxllm-param"] == name
            assert "at most" in error.details()
        error = await code_of(pb_grpc.InferenceStub(channel).Generate(pb.GenerateRequest(text="x" * 3000), timeout=10))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        engine.full = True
        error = await code_of(ask(channel))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(error.trailing_metadata())["retry-after"] == "1"


async def test_names_go_in_and_out_and_ends_are_told(engine, tokenizer, caplog):
    outcomes: list[Outcome] = []
    async with (
        serving(engine, tokenizer, ServerConfig(), outcomes) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        for field in (False, True):
            name = secrets.token_hex()
            metadata = () if field else (("x-request-id", name), ("traceparent", trace))
            fields = {"client_request_id": name, "traceparent": trace} if field else {}
            call = ask(channel, metadata, request_id=f"r{field}", **fields)
            await engine.submitted(f"r{field}")
            engine.step({f"r{field}": list(b"abc")}, finish=FinishReason.LENGTH)
            assert dict(await call.initial_metadata())["x-request-id"] == name
            await call
            outcome = outcomes.pop()
            assert (outcome.client_request_id, outcome.traceparent) == (name, trace)
            assert (outcome.finish, outcome.num_output, outcome.error) == (["length"], 3, None)
            assert outcome.arrival <= outcome.ended
            assert name in str(outcome)
        # Names that a log cannot carry are dropped, and refusals are told of, too.
        await code_of(ask(channel, client_request_id="a\nb", sampling=pb.Sampling(n=1000)))
        outcome = outcomes.pop()
        assert outcome.client_request_id == ""
        assert "INVALID_ARGUMENT" in str(outcome)
        await code_of(ask(channel, request_id="a\nb\u2028" + "c" * 300, sampling=pb.Sampling(n=1000)))
        told = str(outcomes.pop())
        assert told.isprintable()
        assert told.startswith("request a\\nb\\u2028ccc")
        assert len(told) < 600
        assert not outcomes
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_aliases(engine, tokenizer):
    engine.info = dataclasses.replace(engine.info, aliases=("other-name",))
    async with (
        serving(engine, tokenizer, ServerConfig()) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = pb_grpc.InferenceStub(channel)
        for name in ("", "scripted", "other-name"):
            await stub.Tokenize(pb.TokenizeRequest(text="x", model=name), timeout=10)
        error = await code_of(stub.Tokenize(pb.TokenizeRequest(text="x", model="third"), timeout=10))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        info = await pb_grpc.ControlStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
        assert list(info.aliases) == ["other-name"]
