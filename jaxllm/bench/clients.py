"""One streamed request against a server, over gRPC or HTTP, timed where the tokens arrive.

The HTTP client is a few lines on asyncio's streams instead of a library: at hundreds of streams the client's
own time would otherwise show in the figures.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import grpc

from jaxllm.bench.statistics import Record
from jaxllm.bench.workloads import Prompt
from jaxllm.errors import ConfigError, JaxllmError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc


class BenchError(JaxllmError):
    """A benchmark could not be carried out, or its server did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is up. model: the name to ask for; "" lets the server choose. api_key: "" shows none."""

    protocol: Literal["grpc", "http"]
    host: str
    port: int
    model: str = ""
    api_key: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str, model: str = "", api_key: str = "") -> "Target":
        """grpc://HOST:PORT or http://HOST:PORT."""
        protocol, separator, address = text.rstrip("/").partition("://")
        host, _, port = address.rpartition(":")
        if not separator or protocol not in ("grpc", "http") or not host or not port.isdigit():
            raise ConfigError(f"target {text!r}: write grpc://HOST:PORT or http://HOST:PORT")
        return cls(protocol, host.strip("[]"), int(port), model, api_key)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Client(Protocol):
    async def __aenter__(self) -> "Client": ...
    async def __aexit__(self, *exception: object) -> None: ...
    async def run(self, prompt: Prompt, record: Record) -> None:
        """Send the prompt and fill the record; raises what goes wrong."""

    async def describe(self) -> "ServedModel": ...


def client_for(target: Target) -> Client:
    return GrpcClient(target) if target.protocol == "grpc" else HttpClient(target)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of its model; None where the protocol does not tell."""

    name: str
    vocab_size: int | None
    max_model_len: int | None


def describe(target: Target) -> ServedModel:
    """Ask a server what it serves. Raises BenchError when it cannot be reached."""

    async def ask() -> ServedModel:
        async with client_for(target) as client:
            return await client.describe()

    try:
        return asyncio.run(ask())
    except (OSError, grpc.aio.AioRpcError, KeyError, ValueError) as error:
        reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        raise BenchError(f"no answer from {target.protocol}://{target.address}: {reason}; is the server up?") from None


class GrpcClient:
    """`Inference.GenerateStream` over one channel."""

    def __init__(self, target: Target):
        self._target = target
        self._metadata = (("authorization", f"Bearer {target.api_key}"),) if target.api_key else ()

    async def __aenter__(self) -> "GrpcClient":
        self._channel = grpc.aio.insecure_channel(self._target.address)
        self._stub = pb_grpc.InferenceStub(self._channel)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._channel.close(None)

    async def run(self, prompt: Prompt, record: Record) -> None:
        request = pb.GenerateRequest(
            model=self._target.model,
            token_ids=pb.TokenIds(ids=prompt.token_ids),
            sampling=pb.Sampling(max_tokens=prompt.num_output, temperature=0, ignore_eos=True),
        )
        record.sent = time.monotonic()
        try:
            async for chunk in self._stub.GenerateStream(request, metadata=self._metadata):
                if chunk.token_ids:
                    record.arrivals.append(time.monotonic())
                    record.num_output += len(chunk.token_ids)
        except grpc.aio.AioRpcError as error:
            raise BenchError(f"{error.code().name}: {error.details()}") from None

    async def describe(self) -> ServedModel:
        control: Any = pb_grpc.ControlStub(self._channel)
        info = await control.GetModelInfo(pb.GetModelInfoRequest(), timeout=30, metadata=self._metadata)
        return ServedModel(info.name, info.vocab_size, info.max_model_len)


class HttpClient:
    """`POST /v1/completions` with server-sent events, on any OpenAI server; a connection per request."""

    def __init__(self, target: Target):
        self._target = target

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        pass

    async def run(self, prompt: Prompt, record: Record) -> None:
        body = {
            "model": self._target.model,
            "prompt": prompt.token_ids,
            "max_tokens": prompt.num_output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        record.sent = time.monotonic()
        async for event in self._events("POST", "/v1/completions", body):
            if "error" in event:
                raise BenchError(str(event["error"]))
            if event.get("choices"):
                record.arrivals.append(time.monotonic())
            if event.get("usage"):
                record.num_output = event["usage"]["completion_tokens"]

    async def describe(self) -> ServedModel:
        """The first model that /v1/models lists, with its `max_model_len` where the server tells."""
        async for answer in self._events("GET", "/v1/models"):
            model = answer["data"][0]
            return ServedModel(model["id"], None, model.get("max_model_len"))
        raise BenchError(f"http://{self._target.address}/v1/models gave no answer")

    async def _events(self, method: str, path: str, body: dict | None = None) -> AsyncIterator[dict[str, Any]]:
        """The JSON of each `data:` line; of a body that is no event stream, its one document."""
        reader, writer = await asyncio.open_connection(self._target.host, self._target.port, limit=2**20)
        try:
            payload = json.dumps(body).encode() if body is not None else b""
            head = f"{method} {path} HTTP/1.1\r\nHost: {self._target.address}\r\nConnection: close\r\n"
            head += f"Authorization: Bearer {self._target.api_key}\r\n" if self._target.api_key else ""
            head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
            writer.write(head.encode() + payload)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            headers = {}
            while line := (await reader.readline()).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip().lower()
            pieces = _chunks(reader) if headers.get("transfer-encoding") == "chunked" else _until_eof(reader)
            if status != 200 or not headers.get("content-type", "").startswith("text/event-stream"):
                text = b"".join([piece async for piece in pieces]).decode("utf-8", "replace")
                if status != 200:
                    raise BenchError(f"HTTP {status}: {text[:300]}")
                yield json.loads(text)
                return
            rest = b""
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                        yield json.loads(line[5:])
        finally:
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The pieces of a body in chunked transfer coding (RFC 9112, section 7.1)."""
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _until_eof(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(2**16):
        yield piece
