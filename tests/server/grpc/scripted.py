"""A scripted engine in place of EngineClient, and what a test of the service holds."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from jaxllm.core import Delta, FinishReason, Load, Logprobs, ModelInfo, Request, SamplingParams
from jaxllm.errors import QueueFullError, RequestError
from jaxllm.server.grpc import service
from jaxllm.server.grpc.session import Requests
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc


class ScriptedEngine:
    """Stands in for EngineClient: keeps what it is given and yields what a test tells it to, on a thread of its own."""

    def __init__(self) -> None:
        self.info = ModelInfo(
            name="scripted", architecture="Scripted", dtype="float32", num_parameters=1, vocab_size=258,
            max_model_len=8192, eos_token_ids=(257,), max_logprobs=5, path="/nowhere",
            generation_defaults={"temperature": 0.6, "top_k": 20},
        )  # fmt: skip
        self.alive = True
        self.full = False
        self.max_queued = 900
        self.capacity = 1000
        self.requests: dict[str, Request] = {}  # the latest under each of the clients' ids
        self.aborted: list[tuple[str, FinishReason]] = []
        self._owners: dict[str, Callable[[Delta], None]] = {}
        self._used: set[str] = set()

    def make_request(self, prompt: list[int], params: SamplingParams, *, request_id: str, **options: object) -> Request:
        if any(token >= self.info.vocab_size for token in prompt):
            raise RequestError("the prompt holds a token id outside the vocabulary", "prompt")
        return Request(
            request_id=request_id, prompt=prompt, params=params, stop_ids=(257,), max_total=100, seed=0,
            arrival=time.monotonic(), **options,
        )  # fmt: skip

    def submit(self, request: Request, on_delta: Callable[[Delta], None]) -> None:
        if self.full:
            raise QueueFullError("the queue is full")
        name = client_id(request.request_id)
        assert request.request_id not in self._used
        self._used.add(request.request_id)
        self.requests[name] = request
        self._owners[name] = on_delta

    def abort(self, request_id: str, reason: FinishReason = FinishReason.ABORT, index: int | None = None) -> bool:
        name = client_id(request_id)
        self.aborted.append((name, reason) if index is None else (f"{name}#{index}", reason))
        if name not in self._owners:
            return False
        self.step({name: []}, finish=reason, index=index or 0, more=index is not None)
        return True

    def load(self) -> Load:
        return Load(running=len(self._owners), pages_total=10, pages_free=5, generation_tokens=7)

    def flush_prefix_cache(self) -> int:
        return 3

    def step(
        self,
        tokens: dict[str, list[int]],
        *,
        finish: FinishReason | None = None,
        error: str | None = None,
        logprobs: Logprobs | None = None,
        prompt_logprobs: Logprobs | None = None,
        stop_token: int | None = None,
        index: int = 0,
        more: bool = False,
    ) -> None:
        """One step's deltas, all handed over before this returns."""

        def deliver() -> None:
            for request_id, token_ids in tokens.items():
                request = self.requests[request_id]
                request.output += token_ids
                owner = self._owners.pop(request_id) if finish and not more else self._owners[request_id]
                owner(
                    Delta(
                        request_id, token_ids, logprobs, prompt_logprobs, finish, stop_token, error,
                        num_prompt=len(request.prompt), num_output=len(request.output), num_cached=2,
                        arrival=request.arrival, first_scheduled=request.arrival + 1, first_token=request.arrival + 3,
                        finished=request.arrival + 7 if finish else None, index=index, more=more,
                    )
                )  # fmt: skip

        thread = threading.Thread(target=deliver)
        thread.start()
        thread.join()

    async def submitted(self, *request_ids: str) -> list[Request]:
        """The requests, once the service has handed them over."""
        async with asyncio.timeout(20):
            while not all(request_id in self.requests for request_id in request_ids):
                await asyncio.sleep(0.002)
        return [self.requests[request_id] for request_id in request_ids]

    async def anything(self) -> Request:
        async with asyncio.timeout(20):
            while not self.requests:
                await asyncio.sleep(0.002)
        return next(iter(self.requests.values()))


def client_id(engine_id: str) -> str:
    return engine_id.rpartition("/")[0]


@dataclass
class Served:
    engine: ScriptedEngine
    requests: Requests
    backend: service.Backend
    health: service.Health
    channel: grpc.aio.Channel
    channel_address: str
    inference: "pb_grpc.InferenceAsyncStub"
    control: "pb_grpc.ControlAsyncStub"
