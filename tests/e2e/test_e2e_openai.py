"""OpenAI's own Python client against the server as users start it: engine process, front process, sockets."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai_document import OpenApi
from processes import SMALL, Server, serving, until
from prometheus_client.parser import text_string_to_metric_families

MARGIN = 0.01
"""Where the reference itself is less sure than this of its token, another one is no error."""
MODEL = "stories260K-hf"
STORY = "Once upon a time"
MESSAGES = [{"role": "user", "content": "Tell me of Lily."}]
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Once upon a time{% endif %}"
)


@pytest.fixture(scope="module")
def openapi(material: Path) -> OpenApi:
    return OpenApi.load(material)


@pytest.fixture(scope="module")
def cases(material: Path) -> list[dict]:
    return json.loads((material / "derived/goldens/dev/stories260K.json").read_text())["cases"]


@pytest.fixture(scope="module")
def front(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("chat") / "template.jinja"
    template.write_text(TEMPLATE)
    with serving(
        *("--model", stories, "--chat-template", template, "--http-port", "0", "--max-queued", "4"), *SMALL
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(front: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
async def async_client(front: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def as_json(answer: openai.BaseModel) -> dict:
    return answer.model_dump(mode="json", exclude_unset=True)


def metrics(front: Server) -> dict[str, float]:
    """Every metric without its prefix, summed over its label values."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{front.url}/metrics", timeout=20).text):
        for sample in family.samples:
            name = sample.name.removeprefix("jaxllm_")
            sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def test_greedy_tokens_and_logprobs_are_the_references(client, openapi, cases):
    compared = 0
    for case in cases:
        count = len(case["greedy_ids"])
        answer = client.completions.create(
            model=MODEL, prompt=case["prompt"], max_tokens=count, temperature=0, logprobs=5,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
        openapi.check("CreateCompletionResponse", as_json(answer))
        (choice,) = answer.choices
        assert choice.prompt_token_ids == case["prompt_ids"]
        assert len(choice.token_ids) == len(choice.logprobs.tokens) == count
        assert answer.usage.completion_tokens == count
        for i, step in enumerate(case["steps"]):
            if choice.token_ids[i] != step["id"]:
                assert step["margin"] < MARGIN, f"{case['prompt']!r}: another token at {i}"
                break  # another text from here on
            assert choice.logprobs.token_logprobs[i] == pytest.approx(step["lp"], abs=1e-3)
            likely = sorted(choice.logprobs.top_logprobs[i].values(), reverse=True)
            assert likely[: len(step["top5"])] == pytest.approx([lp for _, lp in step["top5"]][: len(likely)], abs=1e-3)
            compared += 1
        else:
            assert choice.text.removeprefix(" ") == case["text"].removeprefix(" ")
    assert compared > 100


def test_prompt_logprobs_are_the_references(client, cases):
    for case in cases:
        answer = client.completions.create(
            model=MODEL, prompt=case["prompt_ids"], max_tokens=1, extra_body={"prompt_logprobs": 0}
        )
        first, *rest = answer.choices[0].prompt_logprobs
        assert first is None
        expected = zip(case["prompt_ids"][1:], case["prompt_logprobs"][1:], strict=True)
        for entry, (token, logprob) in zip(rest, expected, strict=True):
            assert entry[str(token)]["logprob"] == pytest.approx(logprob, abs=1e-3)


def test_a_text_is_scored(client, cases):
    case = max(cases, key=lambda case: len(case["prompt_ids"]))
    asked = {"model": MODEL, "prompt": [case["prompt"], "Zoë 😀 a cat"], "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = client.completions.create(**asked)
    for choice, prompt in zip(answer.choices, asked["prompt"], strict=True):
        scored = choice.logprobs
        assert (choice.text, choice.finish_reason, scored.token_logprobs[0]) == (prompt, "length", None)
        assert scored.text_offset[:2] == [0, 0]  # behind the token that the tokenizer puts before
        for token, offset in zip(scored.tokens[2:], scored.text_offset[2:], strict=True):
            assert prompt.startswith(token, offset) or token == "\ufffd"
    assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(case["prompt_logprobs"][1:], abs=1e-3)
    assert answer.usage.completion_tokens == 0
    assert answer.usage.prompt_tokens == sum(len(choice.logprobs.tokens) for choice in answer.choices)
    events = list(client.completions.create(**asked, stream=True))
    for whole in answer.choices:
        own = [event.choices[0] for event in events if event.choices[0].index == whole.index]
        assert "".join(choice.text for choice in own) == whole.text
        parts = [choice.logprobs for choice in own if choice.logprobs]
        assert [offset for part in parts for offset in part.text_offset] == whole.logprobs.text_offset
        assert own[-1].finish_reason == "length"


def test_a_completion_stream_adds_up(client, openapi):
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 40, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(**asked)
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for event in events:
        openapi.check("CompletionEvent", as_json(event))
    *events, last = events
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
    assert [x for event in events if event.choices[0].logprobs for x in event.choices[0].logprobs.tokens] == (
        whole.choices[0].logprobs.tokens
    )
    assert [event.choices[0].finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 40


def test_a_chat_continues_its_template(client, openapi):
    asked = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 24, "temperature": 0}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    openapi.check("CreateChatCompletionResponse", as_json(answer))
    prompt = f"{MESSAGES[0]['content']}\n{STORY}"
    # A chat template writes its special tokens itself; this one has none.
    plain = {"add_special_tokens": False}
    same = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0, extra_body=plain)
    assert answer.choices[0].message.content == same.choices[0].text
    assert len(answer.choices[0].logprobs.content) == 24

    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for event in events:
        openapi.check("CreateChatCompletionStreamResponse", as_json(event))
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == answer.choices[0].message.content
    assert events[-1].usage.total_tokens == answer.usage.total_tokens


async def test_the_async_client_many_at_once(async_client, front):
    prompts = [STORY, "Lily and Tom", "The cat", "One day"]
    asked = {"model": MODEL, "max_tokens": 30, "temperature": 0}
    alone = [(await async_client.completions.create(prompt=prompt, **asked)).choices[0].text for prompt in prompts]
    together = await asyncio.gather(*(async_client.completions.create(prompt=prompt, **asked) for prompt in prompts))
    assert [answer.choices[0].text for answer in together] == alone
    at_once = await async_client.completions.create(prompt=prompts, **asked)
    assert [choice.text for choice in at_once.choices] == alone

    async def streamed(prompt: str) -> str:
        stream = await async_client.completions.create(prompt=prompt, stream=True, **asked)
        return "".join([event.choices[0].text async for event in stream])

    assert await asyncio.gather(*map(streamed, prompts)) == alone


def test_stop_seed_and_cache(client):
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 60}
    stopped = client.completions.create(**asked, temperature=0, stop=["Lily", "nobody"])
    assert (stopped.choices[0].finish_reason, stopped.choices[0].stop_reason) == ("stop", "Lily")
    assert stopped.choices[0].text.endswith("named ")
    kept = client.completions.create(
        **asked, temperature=0, stop="Lily", extra_body={"include_stop_str_in_output": True}
    )
    assert kept.choices[0].text == stopped.choices[0].text + "Lily"

    texts = [client.completions.create(**asked, temperature=1, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]

    long = {"model": MODEL, "prompt": list(range(3, 203)), "max_tokens": 1}
    client.completions.create(**long)
    again = client.completions.create(**long)
    assert 128 <= again.usage.prompt_tokens_details.cached_tokens < 200


def test_models(client, openapi):
    (model,) = client.models.list().data
    openapi.check("Model", as_json(model))
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.models.retrieve("gpt-4")


def test_errors_are_the_clients_own_exceptions(client):
    def refused(kind: type[openai.APIStatusError], **fields: object) -> openai.APIStatusError:
        with pytest.raises(kind) as raised:
            client.completions.create(**{"model": MODEL, "prompt": STORY} | fields)
        return raised.value

    assert refused(openai.NotFoundError, model="gpt-4").code == "model_not_found"
    assert refused(openai.BadRequestError, top_p=0).param == "top_p"
    assert "511" in str(refused(openai.BadRequestError, prompt=[600]))
    assert "512" in str(refused(openai.BadRequestError, prompt=[5] * 600))
    assert "max-logprobs" in str(refused(openai.BadRequestError, logprobs=50))
    assert "'max_tokens'" in str(refused(openai.BadRequestError, extra_body={"max_token": 3}))
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"temperture": 1})
    with pytest.raises(openai.BadRequestError, match="knows no format of calls"):
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]
        )


async def test_a_full_queue_is_a_rate_limit(async_client, front):
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 100, "extra_body": {"ignore_eos": True}}
    answers = await asyncio.gather(
        *(async_client.completions.create(**asked) for _ in range(32)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert refused
    assert all(isinstance(error, openai.RateLimitError) for error in refused), refused
    served = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(served) >= 8
    assert all(answer.usage.completion_tokens == 100 for answer in served)


def test_a_client_that_leaves_frees_its_request(client, front):
    before = metrics(front)
    asked = {"model": MODEL, "prompt": STORY, "max_tokens": 480, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**asked, stream=True)
    next(iter(stream))
    assert front.load().running == 1
    stream.close()
    until(lambda: front.load().running == 0)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).completions.create(**asked)
    until(lambda: front.load().running == 0)
    for name in ("request_success_total", "http_client_disconnects_total"):
        until(lambda name=name: metrics(front)[name] == before[name] + 2)


def test_tokenize_health_and_version(front, cases):
    def post(path: str, **body: object) -> dict:
        return httpx.post(front.url + path, json=body, timeout=20).json()

    case = cases[0]
    tokens = post("/tokenize", prompt=case["prompt"], return_token_strs=True)
    assert tokens["tokens"] == case["prompt_ids"]
    assert (tokens["count"], tokens["max_model_len"]) == (len(case["prompt_ids"]), 512)
    assert len(tokens["token_strs"]) == tokens["count"]
    assert post("/detokenize", tokens=tokens["tokens"][1:])["prompt"].strip() == case["prompt"]
    assert "error" in post("/detokenize", tokens=[600])
    chat = post("/tokenize", messages=MESSAGES)
    assert chat["count"] > tokens["count"]
    assert httpx.get(f"{front.url}/health", timeout=20).status_code == 200
    assert httpx.get(f"{front.url}/version", timeout=20).json()["version"]


def test_metrics_add_up(client, front):
    before = metrics(front)
    usages = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=tokens, extra_body={"ignore_eos": True}).usage
        for prompt, tokens in ((STORY, 12), ("The cat", 1), (STORY, 30))
    ]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)

    until(lambda: metrics(front)["request_success_total"] == before["request_success_total"] + 3)
    after = metrics(front)
    growth = {name: after[name] - before[name] for name in before}
    assert growth["generation_tokens_total"] == growth["request_generation_tokens_sum"] == 12 + 1 + 30
    assert growth["prompt_tokens_total"] == growth["request_prompt_tokens_sum"] == prompt_tokens
    assert growth["time_to_first_token_seconds_count"] == growth["e2e_request_latency_seconds_count"] == 3
    assert growth["inter_token_latency_seconds_count"] == 11 + 0 + 29
    assert growth["request_params_max_tokens_sum"] == 43
    assert growth["http_requests_total"] >= 3
    assert growth["programs_run_total"] == growth["iteration_tokens_count"] > 0
    assert after["num_requests_running"] == after["num_requests_waiting"] == after["kv_cache_usage_perc"] == 0
    assert after["program_table_size"] > 0
    assert after["compile_seconds"] > 0


def test_when_the_engine_is_killed_the_front_says_so_and_does_not_hang(stories):
    with serving("--model", stories, "--http-port", "0", *SMALL) as server:
        front = psutil.Process(*server.process.children)
        try:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
                stream = client.completions.create(
                    model=MODEL, prompt=STORY, max_tokens=500, stream=True, extra_body={"ignore_eos": True}
                )
                next(iter(stream))
                server.process.signal(signal.SIGKILL)
                with pytest.raises(openai.APIError, match="connection to the engine broke"):
                    list(stream)
                begin = time.monotonic()
                with pytest.raises(openai.InternalServerError) as raised:
                    client.completions.create(model=MODEL, prompt=STORY)
                assert raised.value.status_code == 503
                assert httpx.get(f"{server.url}/health", timeout=20).status_code == 503
                assert httpx.get(f"{server.url}/metrics", timeout=20).status_code == 200
                assert time.monotonic() - begin < 10
            until(lambda: not front.is_running(), seconds=30)  # the port is free for the next server
        finally:
            if front.is_running():
                front.kill()
