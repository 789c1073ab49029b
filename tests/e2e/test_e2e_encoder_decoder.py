"""An encoder-decoder behind the servers: a prompt is what its encoder reads."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from processes import ROOT, SMALL, Server, serving
from words import text_of, write_tokenizer

from jaxllm import LLM, SamplingParams
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

CASE = ROOT / "tests" / "models" / "reference_encoder_decoder" / "t5-first"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "t5"
    shutil.copytree(CASE, folder)
    write_tokenizer(folder, 97)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving("--model", folder, "--http-port", "0", *SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def recorded() -> tuple[list[int], list[int]]:
    """A source, and what transformers' decoder made of it from its start token alone."""
    with np.load(CASE / "reference.npz") as values:
        assert values["ids"][: values["lengths"][0]].tolist() == [0]
        return values["source_ids"][: values["source_lengths"][0]].tolist(), values["greedy"][0].tolist()


def test_a_completion_over_http(server: Server, recorded: tuple[list[int], list[int]]) -> None:
    source, expected = recorded
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for prompt in (text_of(source), source):
            answer = client.completions.create(
                model="t5", prompt=prompt, temperature=0, max_tokens=8, extra_body={"ignore_eos": True}
            )
            assert answer.choices[0].text.split() == text_of(expected).split()
            assert answer.usage is not None
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(source) + 1, 8)


def test_a_generation_over_grpc(server: Server, recorded: tuple[list[int], list[int]]) -> None:
    source, expected = recorded
    sampling = pb.Sampling(temperature=0, max_tokens=8, ignore_eos=True)
    answer = server.inference.Generate(pb.GenerateRequest(text=text_of(source), sampling=sampling), timeout=60)
    assert list(answer.token_ids) == expected


def test_texts_offline(folder: Path, recorded: tuple[list[int], list[int]]) -> None:
    source, expected = recorded
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(str(folder), max_num_seqs=4, max_num_batched_tokens=64) as llm:
        plain, begun = llm.generate(
            [text_of(source), {"encoder_prompt": text_of(source), "decoder_prompt": text_of(expected[:3])}], params
        )
    assert plain.outputs[0].text.split() == text_of(expected).split()
    assert (plain.prompt, plain.encoder_prompt) == (None, text_of(source))
    assert begun.prompt == text_of(expected[:3])
    assert begun.prompt_token_ids == [0, *expected[:3]]
    assert begun.outputs[0].token_ids[:5] == expected[3:]
