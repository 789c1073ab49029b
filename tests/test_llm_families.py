"""Families of different makes through the whole engine, against what transformers computed for the same weights.

The pool holds little more than one request, and prompts come in chunks: every request is preempted, computed again,
and finds prefixes of its own in the cache.
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


# Pages of the pool, one of them the sink. A request that sees but a window gives the pages behind it back.
CASES = {"mistral-window": 10, "gpt2-tied-3-heads": 13, "gpt-oss-yarn-window": 13, "deepseek-v3-groups-yarn": 13}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, dict[str, np.ndarray]]]:
    llm = LLM(
        str(REFERENCE / request.param), max_model_len=44, max_num_seqs=4, max_num_batched_tokens=16, block_size=4,
        decode_steps=(1, 4), num_gpu_blocks_override=CASES[request.param], max_logprobs=VOCAB,
    )  # fmt: skip
    with llm, np.load(REFERENCE / request.param / "reference.npz") as recorded:
        yield llm, dict(recorded)


def generate(llm: LLM, prompts: list[list[int]], **params: Any) -> list[RequestOutput]:
    """Greedily, and together."""
    own = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True, detokenize=False, **params)
    outputs = llm.generate(prompts, own)
    load = llm.engine.load()
    assert load.pages_free == load.pages_total
    return outputs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def assert_close(actual: list[Any], expected: np.ndarray) -> None:
    """actual: per position {token id: Logprob} of the whole vocabulary. expected: logits [n, V]."""
    got = np.array([[position[token].logprob for token in range(VOCAB)] for position in actual])
    np.testing.assert_allclose(got, log_softmax(expected), rtol=1e-4, atol=1e-5)


def test_preempted_chunked_and_cached_requests_are_the_references(case: tuple[LLM, dict[str, np.ndarray]]) -> None:
    llm, recorded = case
    borders = np.cumsum(recorded["lengths"])[:-1]
    prompts = [ids.tolist() for ids in np.split(recorded["ids"], borders)]
    reference = np.split(recorded["logits"], borders)

    together = []
    for params in ({"logprobs": VOCAB}, {"prompt_logprobs": VOCAB}, {}):
        before = llm.engine.load().preemptions
        together.append(generate(llm, prompts, **params))
        assert llm.engine.load().preemptions > before
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
    for cached in (None, len(longest) - 1, len(longest) - 1):  # whole pages are shared, and the last one is copied
        (alone,) = generate(llm, [longest])
        assert cached in (None, alone.num_cached_tokens)
        assert alone.outputs[0].token_ids == answer.token_ids
