"""Families of different makes through the whole engine, against what transformers computed for the same weights.

The pool holds little more than one request, and prompts come in chunks: every request is preempted, computed again,
and finds prefixes of its own in the cache. Layers whose state is all they keep have no pages to run short of; there,
and everywhere else as well, more urgent requests displace others that are being streamed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm import LLM, RequestOutput, SamplingParams

REFERENCE = Path(__file__).parent / "models" / "reference"
VOCAB = 97
LENGTH = 20  # new tokens of a request; transformers' are recorded for the first of them
ROWS = 4

# Pages of the pool, one of them the sink. A request that sees but a window gives the pages behind it back.
CASES = {
    "mistral-window": 10,
    "gpt2-tied-3-heads": 13,
    "gpt-oss-yarn-window": 13,
    "deepseek-v3-groups-yarn": 13,
    "mamba2-groups": None,
    "jamba-experts": 13,
    "granitemoehybrid-experts": 13,
    "falcon-h1-factors": 13,
    "nemotron-h-experts-biases": 13,
    "lfm2-biases-untied": 13,
}

Reference = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, Reference, bool]]:
    """An engine, what was recorded, and whether its pages run short."""
    pages = CASES[request.param]
    llm = LLM(
        str(REFERENCE / request.param), max_model_len=44, max_num_seqs=ROWS, max_num_batched_tokens=16, block_size=4,
        decode_steps=(1, 4), num_gpu_blocks_override=pages or 64, max_logprobs=VOCAB, scheduling_policy="priority",
    )  # fmt: skip
    with llm, np.load(REFERENCE / request.param / "reference.npz") as recorded:
        yield llm, dict(recorded), pages is not None


def params_of(**params: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": LENGTH, "ignore_eos": True, "detokenize": False} | params)


def generate(llm: LLM, prompts: list[list[int]], **params: Any) -> list[RequestOutput]:
    """Greedily, unless the parameters say otherwise, and together."""
    outputs = llm.generate(prompts, params_of(**params))
    assert_all_free(llm)
    return outputs


def assert_all_free(llm: LLM) -> None:
    load = llm.engine.load()
    assert load.pages_free == load.pages_total
    assert load.running == load.waiting == 0


def sequences(recorded: Reference, name: str) -> list[np.ndarray]:
    return np.split(recorded[name], np.cumsum(recorded["lengths"])[:-1])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def assert_close(actual: list[Any], expected: np.ndarray) -> None:
    """actual: per position {token id: Logprob} of the whole vocabulary. expected: logits [n, V]."""
    got = np.array([[position[token].logprob for token in range(VOCAB)] for position in actual])
    np.testing.assert_allclose(got, log_softmax(expected), rtol=1e-4, atol=1e-5)


def test_preempted_chunked_and_cached_requests_are_the_references(case: tuple[LLM, Reference, bool]) -> None:
    llm, recorded, short = case
    prompts = [ids.tolist() for ids in sequences(recorded, "ids")]
    reference = sequences(recorded, "logits")

    together = []
    for params in ({"logprobs": VOCAB}, {"prompt_logprobs": VOCAB}, {}):
        before = llm.engine.load().preemptions
        together.append(generate(llm, prompts, **params))
        assert (llm.engine.load().preemptions > before) is short
    known = recorded["greedy"].shape[1]
    for i, (prompt, logits) in enumerate(zip(prompts, reference, strict=True)):
        drawn, scored, plain = (outputs[i] for outputs in together)
        answer = drawn.outputs[0]
        assert answer.token_ids[:known] == recorded["greedy"][i].tolist()
        assert answer.token_ids == scored.outputs[0].token_ids == plain.outputs[0].token_ids
        assert answer.logprobs is not None
        assert_close(answer.logprobs[:1], logits[-1:])
        assert_close(answer.logprobs, llm.encode_logits(prompt + answer.token_ids[:-1])[len(prompt) - 1 :])
        assert scored.num_cached_tokens == 0
        assert scored.prompt_logprobs is not None
        assert scored.prompt_logprobs[0] is None
        assert len(scored.prompt_logprobs) == len(prompt)
        if len(prompt) > 1:
            assert_close(scored.prompt_logprobs[1:], logits[:-1])

    longest = prompts[-1]
    # Whole pages are shared, and the last one is copied; of states the snapshot where the last full page ends.
    for cached in (None, len(longest) - 1, len(longest) - 1):
        (alone,) = generate(llm, [longest])
        assert cached in (None, alone.num_cached_tokens)
        assert alone.outputs[0].token_ids == answer.token_ids


def test_streams_are_displaced_by_what_is_urgent_and_go_on(case: tuple[LLM, Reference, bool]) -> None:
    llm, recorded, short = case
    prompts = [ids.tolist() for ids in sequences(recorded, "ids")]
    at_once = ROWS if not short else 1  # as many as the pages hold, so that something is running for sure
    streams = [llm.stream(prompt, params_of()) for prompt in prompts[-at_once:]]
    begun = [next(stream) for stream in streams]
    before = llm.engine.load().preemptions
    urgent = llm.generate(prompts, params_of(logprobs=VOCAB, max_tokens=2), priority=-1)
    assert llm.engine.load().preemptions > before
    for output, logits, greedy in zip(urgent, sequences(recorded, "logits"), recorded["greedy"], strict=True):
        answer = output.outputs[0]
        assert answer.token_ids == greedy[:2].tolist()
        assert answer.logprobs is not None
        assert_close(answer.logprobs[:1], logits[-1:])
    for first, stream, greedy in zip(begun, streams, recorded["greedy"][-at_once:], strict=True):
        *_, last = stream
        assert last.finished
        tokens = last.outputs[0].token_ids
        assert len(first.outputs[0].token_ids) < len(tokens) == LENGTH
        assert tokens[: len(greedy)] == greedy.tolist()
    assert_all_free(llm)


def test_samples_share_a_prompt_and_go_their_own_ways(case: tuple[LLM, Reference, bool]) -> None:
    llm, recorded, _ = case
    prompt = sequences(recorded, "ids")[2].tolist()
    drawn = {"temperature": 1.0, "seed": 5, "n": 3, "max_tokens": 8, "logprobs": VOCAB}
    (one,), (other,) = (generate(llm, [prompt], **drawn) for _ in range(2))
    answers = [answer.token_ids for answer in one.outputs]
    assert answers == [answer.token_ids for answer in other.outputs]
    assert len({tuple(tokens) for tokens in answers}) == 3
    assert other.num_cached_tokens == (len(prompt) - 1) // 4 * 4  # where its last full page ends
    for answer in one.outputs:
        assert answer.logprobs is not None
        assert_close(answer.logprobs, llm.encode_logits(prompt + answer.token_ids[:-1])[len(prompt) - 1 :])
