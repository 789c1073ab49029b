"""One definition of each parameter: the offline API, gRPC and HTTP draw the same tokens for the same wishes."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, SMALL, Server, serving

from jaxllm import LLM, SamplingParams
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

PROMPT = "Once upon a time"
DAMP = "scripts.damp_repeats:Damp"

WISHES: list[dict[str, Any]] = [
    {"n": 3, "seed": 5},
    {"n": 2, "best_of": 4, "seed": 6, "temperature": 1.2},
    {"n": 3, "seed": 7, "stop": [" the"], "temperature": 1.5},
    {"n": 2, "best_of": 3, "seed": 8, "stop": ["a"]},
    {"use_beam_search": True, "n": 2, "best_of": 3, "length_penalty": 0.8, "early_stopping": True},
    {"use_beam_search": True, "n": 2, "early_stopping": "never", "stop_token_ids": [286]},
    {"temperature": 0, "logit_bias": {"383": -100, "300": 2.5}},
    {"temperature": 0, "bad_words": ["there", "little girl"]},
    {"seed": 1, "allowed_token_ids": list(range(300, 330))},
    {"temperature": 0, "repetition_penalty": 2.5, "frequency_penalty": 1.3, "presence_penalty": 0.2, "min_tokens": 5},
    {"temperature": 0, "thinking_token_budget": 2, "thinking_token_ids": [432, 300]},
    {"temperature": 0, "truncate_prompt_tokens": 2},
    {"temperature": 0, "echo": True, "logprobs": 2},
    {"temperature": 0, "logits_processors": {"damp": {"strength": 6.0, "decay": 0.9}}},
    {"n": 3, "seed": 9, "logits_processors": {"damp": {"strength": 5}}, "presence_penalty": 1.0, "top_k": 20},
]


@pytest.fixture(scope="module")
def server(stories: Path) -> Iterator[Server]:
    options = (*SMALL, "--logits-processor", DAMP)
    with serving("--model", stories, "--http-port", "0", "--served-model-name", "stories", *options) as server:
        yield server


@pytest.fixture(scope="module")
def llm(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        with LLM(str(stories), max_num_seqs=4, max_num_batched_tokens=64, logits_processors=[DAMP]) as llm:
            yield llm


def post(server: Server, **body: Any) -> dict[str, Any]:
    call = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=120) as answer:
        return json.load(answer)


def wire(wish: dict[str, Any]) -> pb.Sampling:
    special = {
        "logit_bias": lambda value: {int(token): bias for token, bias in value.items()},
        "allowed_token_ids": lambda value: pb.TokenIds(ids=value),
        "thinking_token_ids": lambda value: pb.TokenIds(ids=value),
        "early_stopping": lambda value: {True: "EARLY_STOPPING_ALWAYS", "never": "EARLY_STOPPING_NEVER"}[value],
        "logits_processors": lambda value: {name: json.dumps(argument) for name, argument in value.items()},
    }
    return pb.Sampling(max_tokens=40, **{k: special[k](v) if k in special else v for k, v in wish.items()})


def test_three_ways_to_the_same_tokens(server: Server, llm: LLM) -> None:
    plain = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=40))[0].outputs[0].token_ids
    offline = llm.generate([PROMPT] * len(WISHES), [SamplingParams(max_tokens=40, **wish) for wish in WISHES])
    for wish, output in zip(WISHES, offline, strict=True):
        expected = [(one.token_ids, one.text, one.finish_reason, one.stop_reason) for one in output.outputs]
        assert len(expected) == wish.get("n", 1)
        alike = "echo" in wish or "use_beam_search" in wish
        assert expected[0][0] != plain or alike, f"{wish} changes nothing, and shows nothing"

        response = server.inference.Generate(pb.GenerateRequest(text=PROMPT, sampling=wire(wish)), timeout=120)
        samples = [response, *response.others]
        assert [(list(one.token_ids), one.text) for one in samples] == [one[:2] for one in expected], wish

        body = post(server, prompt=PROMPT, max_tokens=40, return_token_ids=True, **wish)
        choices = [(c["token_ids"], c["text"], c["finish_reason"], c["stop_reason"]) for c in body["choices"]]
        assert choices == expected, wish
        assert body["usage"]["completion_tokens"] == sum(len(one[0]) for one in expected)
    load = server.load()
    assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)


def test_echo_with_logprobs_over_http(server: Server, llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=1, logprobs=1))
    body = post(server, prompt=PROMPT, temperature=0, max_tokens=3, echo=True, logprobs=1)
    (choice,) = body["choices"]
    assert choice["text"] == PROMPT + output.outputs[0].text
    told = choice["logprobs"]
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    entries = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
    ids = [*output.prompt_token_ids[1:], *output.outputs[0].token_ids]
    expected = [entry[token].logprob for entry, token in zip(entries, ids, strict=True) if entry is not None]
    assert told["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)


def test_streams_of_several_samples(server: Server) -> None:
    settings = {"n": 3, "seed": 4, "temperature": 1.3, "stop": [" the"]}
    whole = post(server, prompt=PROMPT, max_tokens=30, **settings)
    call = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps({"prompt": PROMPT, "max_tokens": 30, "stream": True, **settings}).encode(),
        {"Content-Type": "application/json"},
    )
    texts, ends = [""] * 3, [None] * 3
    with urllib.request.urlopen(call, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["text"]
                    ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]


def test_arguments_that_are_wrong_are_told_of(server: Server) -> None:
    for argument, says in (({"damp": {"strength": 1, "decay": 2}}, "must be in [0, 1)"), ({"dmp": 1}, "did you mean")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(server, prompt=PROMPT, logits_processors=argument)
        error = json.load(refused.value)["error"]
        assert (refused.value.code, error["param"]) == (400, "logits_processors")
        assert says in error["message"]
