"""Two hundred streams at once against a pool too small for them: nobody's answer changes, nothing is lost or kept."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from processes import Server, serving, until

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc

STREAMS = 200
LONGEST = 160  # new tokens
PROMPTS = (
    "Once upon a time",
    "Lily and Tom went to the park",
    "The little dog was sad because",
    "One day, a big bird saw a small fish in the water and",
    "Tim had a red ball and a blue car. " * 8,
    "Mom said, \"It is time to go to bed.\" But Ben did not want to sleep. " * 4,
)  # fmt: skip
SAMPLINGS = (
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.95, "seed": 7},
    {"temperature": 1.0, "top_k": 40, "min_p": 0.02, "repetition_penalty": 1.1, "seed": 8},
)
KINDS = [(text, i) for text in PROMPTS for i in range(len(SAMPLINGS))]
SERVER = (
    "--max-num-seqs", "16", "--max-num-batched-tokens", "128", "--block-size", "16",
    "--num-gpu-blocks-override", "60", "--http-port", "-1",
)  # fmt: skip


@dataclass
class Plan:
    """One stream: what it asks for, and what becomes of it."""

    request_id: str
    kind: int
    max_tokens: int
    abort_after: int | None  # tokens
    timeout: float | None  # seconds
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: int | None = None

    def request(self) -> pb.GenerateRequest:
        text, sampling = KINDS[self.kind]
        return pb.GenerateRequest(
            request_id=self.request_id,
            text=text,
            sampling=pb.Sampling(max_tokens=self.max_tokens, ignore_eos=True, **SAMPLINGS[sampling]),
            timeout_seconds=self.timeout,
        )

    def take(self, chunk: pb.GenerateChunk) -> bool:
        """Add a chunk; True when the client has had enough of it."""
        assert not chunk.HasField("error"), chunk.error
        assert self.finish is None, "nothing follows a finish"
        self.token_ids += chunk.token_ids
        self.text += chunk.text
        if chunk.HasField("finish"):
            self.finish = chunk.finish.reason
        return self.abort_after is not None and self.finish is None and len(self.token_ids) >= self.abort_after


@pytest.fixture(scope="module")
def small(stories: Path) -> Iterator[Server]:
    with serving("--model", stories, *SERVER) as server:
        yield server


@pytest.fixture(scope="module")
def alone(small: Server) -> list[pb.GenerateResponse]:
    """What each kind of request is answered with when it is the only one."""
    plans = [Plan(f"alone{kind}", kind, LONGEST, None, None) for kind in range(len(KINDS))]
    return [small.inference.Generate(plan.request(), timeout=60) for plan in plans]


def plans(seed: int) -> list[Plan]:
    draw = random.Random(seed)
    made = []
    for i in range(STREAMS):
        plan = Plan(f"storm{i}", draw.randrange(len(KINDS)), draw.randint(1, LONGEST), None, None)
        fate = i % 6
        if fate in (1, 4):  # a third is aborted
            plan.abort_after = draw.randint(0, plan.max_tokens - 1)
        elif fate == 5 and i % 4:
            plan.timeout = draw.choice((0.001, 0.2, 1.0))
        made.append(plan)
    draw.shuffle(made)
    return made


async def stream(inference: pb_grpc.InferenceStub, plan: Plan) -> None:
    """Over GenerateStream; an abort is the call's cancellation."""
    call = inference.GenerateStream(plan.request())
    if plan.abort_after == 0:
        await asyncio.sleep(0.01)
        call.cancel()
        return
    async for chunk in call:
        if plan.take(chunk):
            call.cancel()
            return


async def session(inference: pb_grpc.InferenceStub, mine: list[Plan]) -> None:
    """All over one Session."""
    running = {plan.request_id: plan for plan in mine}
    call = inference.Session()
    for plan in mine:
        await call.write(pb.SessionRequest(generate=plan.request()))
        if plan.abort_after == 0:
            await call.write(pb.SessionRequest(abort=plan.request_id))
    aborted = set()
    while running:
        for chunk in (await call.read()).chunks:
            plan = running[chunk.request_id]
            if plan.take(chunk) and plan.request_id not in aborted:
                aborted.add(plan.request_id)
                await call.write(pb.SessionRequest(abort=plan.request_id))
            if plan.finish is not None:
                del running[chunk.request_id]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def storm(address: str, made: list[Plan]) -> None:
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(150):
        inference = pb_grpc.InferenceStub(channel)
        half = STREAMS // 2
        await asyncio.gather(session(inference, made[:half]), *(stream(inference, plan) for plan in made[half:]))


def ends(server: Server) -> Counter[str]:
    """How many requests have ended, by reason, as the metrics say."""
    text = server.control.GetMetrics(pb.GetMetricsRequest(), timeout=10).text
    found = re.findall(r'^jaxllm_request_success_total{.*finished_reason="(\w+)".*} (\S+)$', text, re.MULTILINE)
    return Counter({reason: int(float(count)) for reason, count in found})


def test_two_hundred_streams(small: Server, alone: list[pb.GenerateResponse]) -> None:
    before = small.load()
    made = plans(seed=1)
    asyncio.run(storm(small.address, made))

    reasons = Counter()
    for plan in made:
        solo = alone[plan.kind]
        assert plan.token_ids == solo.token_ids[: len(plan.token_ids)], f"{plan.request_id}: another's tokens"
        assert solo.text.startswith(plan.text.removesuffix("�")), plan.request_id
        reasons[plan.finish] += 1
        if plan.abort_after is None and plan.timeout is None:
            assert plan.finish == pb.FINISH_REASON_LENGTH
            assert len(plan.token_ids) == plan.max_tokens
    assert reasons[pb.FINISH_REASON_LENGTH] > STREAMS / 3
    assert reasons[pb.FINISH_REASON_DEADLINE] > 5
    assert reasons[pb.FINISH_REASON_ABORT] > 10
    assert reasons[None] > 10, "streams cancelled by their clients"

    until(lambda: small.load().pages_free == before.pages_total)
    load = small.load()
    assert (load.running, load.waiting) == (0, 0)
    assert load.preemptions > before.preemptions, "the pool was to be too small"
    assert load.generation_tokens - before.generation_tokens >= sum(len(plan.token_ids) for plan in made)
    # A client may know of its end a moment before the metrics do.
    until(lambda: sum(ends(small).values()) >= len(alone) + STREAMS)
    ended = ends(small)
    assert sum(ended.values()) == len(alone) + STREAMS, "every request ends once"
    assert ended["length"] >= len(alone) + reasons[pb.FINISH_REASON_LENGTH]
    assert ended["deadline"] >= reasons[pb.FINISH_REASON_DEADLINE]
    assert ended["error"] == 0

    assert "Traceback" not in small.process.output, small.process.output
    after = small.inference.Generate(Plan("after", 0, LONGEST, None, None).request(), timeout=60)
    assert after.token_ids == alone[0].token_ids
