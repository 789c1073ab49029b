"""Everything a request may ask for, at once: 64 clients, all features mixed, some of them leaving in the middle.

Each answer equals its solo answer, every page comes back, and memory stays flat. (The seeds are such that no draw is so
near a tie that the rounding of another batch's shape, in float32, decides it.)
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Server, serving, until

CLIENTS = 64
REQUESTS = int(os.environ.get("JAXLLM_SOAK_REQUESTS", "600"))
"""600 here; 2,000 make a soak."""
GROWTH = 96 << 20
"""Bytes by which the engine and its front may grow over the last two thirds of the soak."""
SERVER = (
    "--dtype", "float32", "--http-port", "0", "--max-num-seqs", "16", "--max-num-batched-tokens", "128",
    "--block-size", "16", "--num-gpu-blocks-override", "50", "--logits-processor", "scripts.damp_repeats:Damp",
    "--tool-call-parser", "hermes", "--scheduling-policy", "priority",
)  # fmt: skip

COMPLETIONS, CHAT, RESPONSES, MESSAGES = (
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"
)  # fmt: skip
PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "mood": {"enum": ["glad", "sad"]},
    },
}  # fmt: skip
SHORT = {"type": "object", "required": ["ok"], "additionalProperties": False, "properties": {"ok": {"type": "boolean"}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SHORT}} for name in ("look", "listen")]
TEMPLATE = "{# <tool_call> #}{% for m in messages %}{{ m.content }} {% endfor %}{{ tools | tojson if tools else '' }}"
STORY = "Once upon a time there was a little girl named Lily who"
NOT_STREAMED = {"use_beam_search", "best_of", "prompt_logprobs"}
ASK = [{"role": "user", "content": "Tell me of a cat and a dog."}]

WISHES: list[tuple[str, dict[str, Any]]] = [
    *((COMPLETIONS, {"prompt": STORY, "max_tokens": 24, **wish}) for wish in (
        {"temperature": 0},
        {"seed": 1, "temperature": 0.9, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
        {"seed": 2, "n": 3},
        {"seed": 3, "n": 2, "best_of": 4},
        {"seed": 4, "n": 2, "logprobs": 3, "presence_penalty": 0.5},
        {"use_beam_search": True, "n": 2, "best_of": 3, "temperature": 0},
        {"temperature": 0, "echo": True, "logprobs": 1},
        {"temperature": 0, "prompt_logprobs": 2},
        {"temperature": 0, "frequency_penalty": 1.0, "repetition_penalty": 1.4},
        {"seed": 5, "stop": [" the", "."], "include_stop_str_in_output": True},
        {"seed": 16, "min_tokens": 8, "ignore_eos": True},
        {"temperature": 0, "logit_bias": {"300": 3.0, "17": -100}},
        {"seed": 7, "bad_words": ["and", "little girl"]},
        {"seed": 8, "allowed_token_ids": list(range(300, 360))},
        {"seed": 9, "logits_processors": {"damp": {"strength": 4.0}}},
        {"seed": 10, "truncate_prompt_tokens": 5, "cache_salt": "apart"},
        {"seed": 11, "structured_outputs": {"regex": "[a-f]{4}-[0-9]{3}"}},
        {"seed": 12, "structured_outputs": {"choice": ["yes", "no", "perhaps"]}, "n": 2},
        {"seed": 13, "structured_outputs": {"grammar": 'start: ("la " | "lo ")+ "end"'}, "logprobs": 1},
        {"seed": 14, "prompt": [STORY, "The sea"], "priority": 3},
        {"seed": 15, "prompt": STORY * 8, "max_tokens": 60},
    )),
    *((CHAT, {"messages": ASK, "max_tokens": 32, **wish}) for wish in (
        {"temperature": 0},
        {"seed": 21, "n": 2, "logprobs": True, "top_logprobs": 2},
        {"seed": 22, "max_tokens": 60, "response_format": {
            "type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}},
        {"seed": 23, "max_tokens": 40, "response_format": {"type": "json_object"}},
        {"seed": 24, "tools": TOOLS},
        {"seed": 25, "tools": TOOLS, "tool_choice": "required", "max_tokens": 60},
        {"seed": 26, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "look"}},
         "max_tokens": 60},
        {"seed": 27, "stop": ["a"]},
    )),
    (RESPONSES, {"input": "Say something.", "max_output_tokens": 24, "seed": 31}),
    (RESPONSES, {"input": "Say more.", "max_output_tokens": 24, "seed": 32, "store": False, "text": {
        "format": {"type": "json_schema", "name": "short", "schema": SHORT, "strict": True}}}),
    (MESSAGES, {"messages": ASK, "max_tokens": 24, "seed": 41, "system": "Be brief.", "stop_sequences": ["the"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("soak") / "template.jinja"
    template.write_text(TEMPLATE)
    with serving(*SERVER, "--chat-template", template) as server:
        yield server


def said(path: str, whole: dict[str, Any]) -> Any:
    """What an answer says, without what differs from request to request by design."""
    match path:
        case "/v1/completions":
            return [(c["index"], c["text"], c["finish_reason"], c.get("logprobs"), c.get("prompt_logprobs"))
                    for c in whole["choices"]]  # fmt: skip
        case "/v1/chat/completions":
            return [
                (c["index"], c["message"].get("content"), c["finish_reason"], c.get("logprobs"),
                 [call["function"] for call in c["message"].get("tool_calls") or ()])
                for c in whole["choices"]
            ]  # fmt: skip
        case "/v1/responses":
            return [item.get("content") for item in whole["output"]], whole["status"]
        case _:
            return whole["content"], whole["stop_reason"]


def near(answer: Any) -> Any:
    """What equals this answer up to its numbers' rounding in batches of other shapes."""
    if isinstance(answer, float):
        return pytest.approx(answer, abs=1e-3)
    if isinstance(answer, dict):
        return {key: near(value) for key, value in answer.items()}
    return type(answer)(map(near, answer)) if isinstance(answer, (list, tuple)) else answer


def texts(path: str, whole: dict[str, Any]) -> Counter[tuple[int, str]]:
    """Of each of its parts, the text; what a stream adds up to."""
    parts: Counter[tuple[int, str]] = Counter()
    match path:
        case "/v1/completions":
            for choice in whole["choices"]:
                parts[choice["index"], choice["text"]] += 1
        case "/v1/chat/completions":
            for choice in whole["choices"]:
                if choice["message"].get("content"):
                    parts[choice["index"], choice["message"]["content"]] += 1
                for call in choice["message"].get("tool_calls") or ():
                    parts[choice["index"], call["function"]["arguments"]] += 1
        case "/v1/responses":
            parts[0, "".join(part["text"] for item in whole["output"] for part in item["content"])] += 1
        case _:
            for block in whole["content"]:
                parts[0, block["text"]] += 1
    return parts


class Stream:
    """What the events of a stream add up to, in the terms of `texts`."""

    def __init__(self, path: str):
        self._path = path
        self._parts: dict[tuple[int, Any], str] = {}
        self.events = 0

    def _add(self, index: int, part: Any, text: str | None) -> None:
        if text:
            self._parts[index, part] = self._parts.get((index, part), "") + text

    def take(self, line: str) -> None:
        if not line.startswith("data: ") or line == "data: [DONE]":
            return
        self.events += 1
        event = json.loads(line.removeprefix("data: "))
        assert "error" not in event, event
        match self._path:
            case "/v1/completions":
                for choice in event["choices"]:
                    self._parts.setdefault((choice["index"], "text"), "")
                    self._add(choice["index"], "text", choice["text"])
            case "/v1/chat/completions":
                for choice in event["choices"]:
                    self._add(choice["index"], "content", choice["delta"].get("content"))
                    for call in choice["delta"].get("tool_calls") or ():
                        self._add(choice["index"], call["index"], call["function"].get("arguments"))
            case "/v1/responses":
                if event["type"] == "response.output_text.delta":
                    self._add(0, "text", event["delta"])
            case _:
                if event["type"] == "content_block_delta":
                    self._add(0, event["index"], event["delta"]["text"])

    def texts(self) -> Counter[tuple[int, str]]:
        return Counter((index, text) for (index, _), text in self._parts.items())


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def one(client: httpx.AsyncClient, draw: random.Random, solo: list[dict[str, Any]]) -> str:
    """One request, whole or streamed, read to its end or left; how it went."""
    number = draw.randrange(len(WISHES))
    path, body = WISHES[number]
    fate = draw.choices(("whole", "stream", "left", "late"), (4, 4, 1, 1))[0]
    if fate == "whole":
        assert said(path, await ask(client, path, body)) == near(said(path, solo[number])), (path, body)
    elif fate == "late":
        try:
            await client.post(path, json=body, timeout=httpx.Timeout(30, read=draw.uniform(0.01, 0.3)))
        except httpx.ReadTimeout:
            return "late"
    else:
        if NOT_STREAMED & body.keys():
            return await one(client, draw, solo)
        patience = draw.randint(0, 8) if fate == "left" else None
        stream = Stream(path)
        async with client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                stream.take(line)
                if patience is not None and stream.events > patience:
                    return "left"
        assert stream.texts() == texts(path, solo[number]), (path, body)
    return fate


async def soak(url: str, requests: int, solo: list[dict[str, Any]]) -> Counter[str]:
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def user(number: int) -> Counter[str]:
            draw = random.Random(number)
            share = requests // CLIENTS + (number < requests % CLIENTS)
            return Counter([await one(client, draw, solo) for _ in range(share)])

        return sum(await asyncio.gather(*map(user, range(CLIENTS))), Counter())


async def alone(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return [await ask(client, path, body) for path, body in WISHES]


def resident(server: Server) -> int:
    """Bytes that the engine and its front hold."""
    statuses = [
        Path(f"/proc/{pid}/statm").read_text() for pid in (server.process.process.pid, *server.process.children)
    ]
    return sum(int(status.split()[1]) for status in statuses) * os.sysconf("SC_PAGE_SIZE")


def test_everything_at_once(server: Server) -> None:
    before = server.load()
    solo = asyncio.run(alone(server.url))
    ends = asyncio.run(soak(server.url, REQUESTS // 3, solo))
    size = resident(server)
    ends += asyncio.run(soak(server.url, REQUESTS - REQUESTS // 3, solo))
    assert sum(ends.values()) == REQUESTS
    assert min(ends[fate] for fate in ("whole", "stream", "left", "late")) > REQUESTS // 50, ends

    until(lambda: server.load().running == server.load().waiting == 0)
    load = server.load()
    assert load.pages_free == load.pages_total
    assert load.preemptions > before.preemptions, "the pool was to be too small"
    assert resident(server) - size < GROWTH
    assert "Traceback" not in server.process.output, server.process.output
    again = asyncio.run(alone(server.url))
    for (path, body), first, last in zip(WISHES, solo, again, strict=True):
        assert said(path, last) == near(said(path, first)), (path, body)
