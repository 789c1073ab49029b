"""Several samples of one request: their chunks, the choice of the best, and the prompt said again."""

from collections.abc import Callable

import numpy as np
import pytest
from scripted import ScriptedEngine, Served

from jaxllm.core import FinishReason, Logprobs
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.text import Tokenizer


def request(**sampling) -> pb.GenerateRequest:
    return pb.GenerateRequest(request_id="a", text="hello", sampling=pb.Sampling(**sampling))


def scored(value: float, count: int) -> Logprobs:
    empty = np.zeros((count, 0))
    return Logprobs(
        np.full(count, value, np.float32), np.ones(count, np.int32), empty.astype(np.int32), empty.astype(np.float32)
    )


@pytest.fixture
def encode(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


async def test_samples_have_their_own_chunks_and_ends(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.GenerateStream(request(n=2))
    (entered,) = await engine.submitted("a")
    assert entered.params.n == 2
    engine.step({"a": encode("ab")}, index=1)
    engine.step({"a": encode("x")}, index=0)
    engine.step({"a": encode("c")}, index=1, finish=FinishReason.LENGTH, more=True)
    engine.step({"a": [*encode("y"), 257]}, index=0, finish=FinishReason.STOP, stop_token=257)
    chunks = [chunk async for chunk in call]
    texts = ["".join(chunk.text for chunk in chunks if chunk.index == index) for index in range(2)]
    assert texts == ["xy", "abc"]
    ends = {chunk.index: chunk.finish.reason for chunk in chunks if chunk.HasField("finish")}
    assert ends == {0: pb.FINISH_REASON_STOP, 1: pb.FINISH_REASON_LENGTH}
    for index in range(2):
        first = next(chunk for chunk in chunks if chunk.index == index)
        assert first.prompt_token_ids == encode("hello")
    assert not engine.aborted
    assert len(served.requests) == 0


async def test_the_unary_answer_has_them_all(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.Generate(request(n=3))
    await engine.submitted("a")
    for index, text in ((2, "two"), (0, "zero"), (1, "one")):
        engine.step({"a": encode(text)}, index=index, finish=FinishReason.LENGTH, more=index != 1)
    response = await call
    assert [response.text, *(other.text for other in response.others)] == ["zero", "one", "two"]
    assert all(other.finish.reason == pb.FINISH_REASON_LENGTH for other in response.others)


async def test_a_stop_string_ends_its_sample_alone(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.Generate(request(n=2, stop=["END"]))
    await engine.submitted("a")
    engine.step({"a": encode("aENDb")}, index=1)
    assert engine.aborted == [] or engine.aborted == [("a#1", FinishReason.STOP)]
    engine.step({"a": encode("more")}, index=0)
    engine.step({"a": encode("!")}, index=0, finish=FinishReason.LENGTH)
    response = await call
    assert engine.aborted == [("a#1", FinishReason.STOP)]
    assert (response.text, response.others[0].text) == ("more!", "a")
    assert response.others[0].finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop_string="END")


async def test_the_best_of_several_are_answered_with(served: Served, engine: ScriptedEngine, encode) -> None:
    """By the mean over the tokens of the answer, those behind a stop string left out."""
    call = served.inference.GenerateStream(request(n=2, best_of=4, stop=["|"]))
    await engine.submitted("a")
    engine.step({"a": encode("poor")}, index=0, logprobs=scored(-5, 4), finish=FinishReason.LENGTH, more=True)
    engine.step({"a": encode("bestandlong")}, index=1, logprobs=scored(-1, 11), finish=FinishReason.LENGTH, more=True)
    cut = scored(-2, 9)
    cut.token[5:] = -100
    engine.step({"a": encode("good|more")}, index=2, logprobs=cut)
    engine.step({"a": encode("fair")}, index=3, logprobs=scored(-4, 4), finish=FinishReason.LENGTH)
    chunks = [chunk async for chunk in call]
    assert [(chunk.index, chunk.text) for chunk in chunks] == [(0, "bestandlong"), (1, "good")]
    assert not any(chunk.logprobs for chunk in chunks), "they were not asked for"


async def test_one_sample_that_fails_fails_the_request(served: Served, engine: ScriptedEngine, encode) -> None:
    call = served.inference.Generate(request(n=2))
    await engine.submitted("a")
    engine.step({"a": []}, index=0, finish=FinishReason.ERROR, error="it broke", more=True)
    with pytest.raises(Exception, match="it broke"):
        await call
    assert ("a", FinishReason.STOP) in engine.aborted, "the other sample runs on for nobody"


@pytest.mark.parametrize("as_ids", [False, True])
async def test_echo(served: Served, engine: ScriptedEngine, encode, as_ids: bool) -> None:
    wire = request(echo=True, prompt_logprobs=0, logprobs=0, n=2)
    if as_ids:
        wire.token_ids.ids.extend(encode("hello"))
    call = served.inference.Generate(wire)
    await engine.submitted("a")
    engine.step({"a": encode("!")}, index=0, logprobs=scored(-1, 1), prompt_logprobs=scored(-2, 4), more=True,
                finish=FinishReason.LENGTH)  # fmt: skip
    engine.step({"a": encode("?")}, index=1, logprobs=scored(-1, 1), finish=FinishReason.LENGTH)
    response = await call
    assert (response.text, response.others[0].text) == ("hello!", "hello?")
    assert [(entry.token, entry.rank) for entry in response.prompt_logprobs] == list(zip("hello", [0, 1, 1, 1, 1]))  # noqa: B905
    assert response.token_ids == encode("!")
