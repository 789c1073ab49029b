"""Structured outputs of a model far too small to mean them: offline, over gRPC and HTTP, with OpenAI's client."""

import concurrent.futures
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
from processes import SMALL, Server, serving
from pydantic import BaseModel, Field

from jaxllm import LLM, SamplingParams, StructuredOutputs
from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

PROMPT = "Once upon a time"
USER = {"role": "user", "content": "Tell me of a cat."}
TEMPLATE = """{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}<tool_call>{% for message in messages %}\
{{ message.content }}{% endfor %}"""
ROOM = 290


class Cat(BaseModel, extra="forbid"):
    name: str = Field(max_length=12)
    kind: Literal["tabby", "black"]
    lives: int = Field(ge=1, le=9)
    friends: list[Literal["dog", "bird"]] = Field(max_length=2)


SCHEMA = Cat.model_json_schema()
FOOD = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "feed", "parameters": FOOD}}


@pytest.fixture(scope="module")
def llm(stories: Path) -> Iterator[LLM]:
    """Its pool holds a part of what a full batch needs: requests are preempted."""
    config: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "block_size": 8, "max_model_len": 320}
    with LLM(str(stories), num_gpu_blocks_override=42, **config) as llm:
        yield llm


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "template.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def server(stories: Path, template: Path) -> Iterator[Server]:
    options = ("--http-port", "0", "--served-model-name", "stories", "--chat-template", template, *SMALL)
    with serving("--model", stories, *options) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_offline_answers_fit_whatever_is_drawn(llm: LLM) -> None:
    """Many at once, at a high temperature, some of them preempted; free ones among them."""
    forms = [
        StructuredOutputs(json=SCHEMA),
        StructuredOutputs(regex="[0-9]{3}-[a-f]{2,5}"),
        StructuredOutputs(choice=("yes", "no", "no more")),
        StructuredOutputs(grammar='start: "(" start ")" | WORD\nWORD: /[a-z]{1,5}/'),
        None,
    ]
    params = [
        SamplingParams(max_tokens=ROOM if form else 40, temperature=1.5, seed=i, n=1 + i % 3, structured_outputs=form)
        for i, form in enumerate(forms * 3)
    ]
    preempted = llm.engine.load().preemptions
    outputs = llm.generate([f"{PROMPT}, {i}" for i in range(len(params))], params)
    assert llm.engine.load().preemptions > preempted
    for output, own in zip(outputs, params, strict=True):
        assert len(output.outputs) == own.n
        for answer in output.outputs:
            check(own.structured_outputs, answer.text)
            assert answer.finish_reason == ("stop" if own.structured_outputs else "length")
    alone = llm.generate(f"{PROMPT}, 0", params[0])[0]
    assert alone.outputs[0].token_ids == outputs[0].outputs[0].token_ids


def check(form: StructuredOutputs | None, text: str) -> None:
    match form:
        case StructuredOutputs(json=str()):
            Cat.model_validate_json(text)
        case StructuredOutputs(regex=str(pattern)):
            assert re.fullmatch(pattern, text)
        case StructuredOutputs(choice=tuple(choices)):
            assert text in choices
        case StructuredOutputs(grammar=str()):
            assert re.fullmatch(r"\(*[a-z]{1,5}\)*", text)
            assert text.count("(") == text.count(")")


def test_offline_log_probabilities_and_stop_strings(llm: LLM) -> None:
    form = StructuredOutputs(choice=("a dog", "a cat", "a bird"))
    (output,) = llm.generate(PROMPT, SamplingParams(max_tokens=20, logprobs=3, seed=1, structured_outputs=form))
    answer = output.outputs[0]
    assert answer.text in form.choice  # type: ignore[operator]
    assert answer.logprobs is not None
    assert [next(iter(position)) for position in answer.logprobs] == answer.token_ids
    stopped = SamplingParams(max_tokens=20, stop=("a ",), structured_outputs=form)
    (output,) = llm.generate(PROMPT, stopped)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("", "a ")
    (output,) = llm.generate(PROMPT, SamplingParams(max_tokens=2, structured_outputs=form))
    assert output.outputs[0].finish_reason == "length"


def test_offline_refusals(llm: LLM) -> None:
    with pytest.raises(RequestError, match="'not' at # is not supported"):
        llm.generate(PROMPT, SamplingParams(structured_outputs=StructuredOutputs(json={"not": {}})))
    with pytest.raises(RequestError, match="not with use_beam_search"):
        SamplingParams(use_beam_search=True, structured_outputs=StructuredOutputs(regex="a"))
    # What else is asked of the tokens gives way where it leaves nothing of the grammar.
    contrary = SamplingParams(allowed_token_ids=(300,), structured_outputs=StructuredOutputs(choice=("yes",)))
    (output,) = llm.generate(PROMPT, contrary)
    assert output.outputs[0].text == "yes"


@pytest.mark.parametrize("stream", [False, True])
def test_grpc(server: Server, stream: bool) -> None:
    form = pb.StructuredOutputs(json=json.dumps(SCHEMA))
    sampling = pb.Sampling(max_tokens=ROOM, seed=3, structured_outputs=form, n=3)
    request = pb.GenerateRequest(text=PROMPT, sampling=sampling)
    if stream:
        texts = ["", "", ""]
        for chunk in server.inference.GenerateStream(request):
            texts[chunk.index] += chunk.text
    else:
        answer = server.inference.Generate(request)
        texts = [answer.text, *(other.text for other in answer.others)]
    assert len(texts) == 3
    for text in texts:
        Cat.model_validate_json(text)


def test_parse_with_pydantic(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="stories", messages=[USER], response_format=Cat, max_tokens=ROOM, n=2, logprobs=True, seed=4
    )
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Cat)
        assert choice.finish_reason == "stop"
        assert choice.logprobs is not None


def test_stream_with_pydantic(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="stories", messages=[USER], response_format=Cat, max_tokens=ROOM, seed=5
    ) as stream:
        events = [event.type for event in stream]
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Cat)
    assert events.count("content.delta") > 5


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"response_format": {"type": "json_object"}}, r"\{.*\}"),
        ({"response_format": {"type": "text"}}, ".*"),
        ({"response_format": {"type": "structural_tag", "format": {"type": "const_string", "value": "ä"}}}, "ä"),
        ({"response_format": {"type": "structural_tag", "triggers": ["e"],
                              "structures": [{"begin": "e<", "schema": {"const": 1}, "end": ">"}]}}, "([^e]|e<1>)*"),
        ({"structured_outputs": {"regex": "a{2,4}b"}}, "a{2,4}b"),
        ({"structured_outputs": {"choice": ["x", "y z"]}}, "x|y z"),
        ({"structured_outputs": {"grammar": 'start: "a"+ "b"'}}, "a+b"),
        ({"structured_outputs": {"json": {"enum": [1, None, "ö"]}}}, '1|null|"ö"'),
        ({"structured_outputs": {"json": {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2},
                                 "disable_any_whitespace": True}}, r"\[1,1\]"),
    ],
)  # fmt: skip
def test_completions(client: openai.OpenAI, fields: dict[str, Any], pattern: str) -> None:
    answer = client.completions.create(model="stories", prompt=PROMPT, max_tokens=60, seed=6, extra_body=fields)
    (choice,) = answer.choices
    if choice.finish_reason == "stop":
        assert re.fullmatch(pattern, choice.text, re.DOTALL), choice.text
    assert choice.finish_reason == "stop" or "response_format" in fields  # free text has no end of its own


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "feed"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_calls_that_have_to_be_made(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    check_call(client, choice, stream)


def test_calls_that_have_to_be_made_in_python(stories: Path, template: Path) -> None:
    options = ("--http-port", "0", "--served-model-name", "stories", "--chat-template", template, *SMALL)
    with (
        serving("--model", stories, "--tool-call-parser", "pythonic", *options) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        check_call(client, "required", stream=False)
        check_call(client, {"type": "function", "function": {"name": "feed"}}, stream=True)
        unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        tool = {"type": "function", "function": {"name": "feed", "parameters": unique}}
        with pytest.raises(openai.BadRequestError, match="'uniqueItems' at #/properties/a cannot be kept to"):
            client.chat.completions.create(
                model="stories", messages=[USER], tools=[tool], tool_choice="required", max_tokens=9
            )  # type: ignore[call-overload]


def check_call(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "stories", "messages": [USER], "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False,
        "max_tokens": 200, "seed": 7,
    }  # fmt: skip
    if stream:
        name, arguments, reason = "", "", None
        for event in client.chat.completions.create(**asked, stream=True):
            (part,) = event.choices
            reason = part.finish_reason or reason
            for call in part.delta.tool_calls or ():
                name, arguments = name + (call.function.name or ""), arguments + (call.function.arguments or "")
    else:
        (answered,) = client.chat.completions.create(**asked).choices
        assert not answered.message.content
        (call,) = answered.message.tool_calls
        name, arguments, reason = call.function.name, call.function.arguments, answered.finish_reason
    assert name == "feed"
    assert reason == "tool_calls"
    jsonschema.Draft202012Validator(FOOD).validate(json.loads(arguments))


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"regex": "("}, "regex parse error"),
        ({"json": {"properties": {"a": {"uniqueItems": True}}}}, "'uniqueItems' at #/properties/a is not supported"),
        ({"json": {"type": "integer", "multipleOf": 1_000_003}}, "takes longer than 1 s"),
        ({"grammar": "start: nothing"}, "nothing"),
    ],
)
def test_what_is_refused_holds_up_nobody(client: openai.OpenAI, form: dict[str, Any], why: str) -> None:
    """A stream goes on while a form is refused; its longest pause is no longer than the machine's own."""
    pauses, began = [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stream = client.completions.create(
            model="stories", prompt=PROMPT, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        refused = pool.submit(
            client.completions.create, model="stories", prompt="x", extra_body={"structured_outputs": form}
        )
        for _ in stream:
            pauses.append(time.monotonic() - began)
            began = time.monotonic()
        with pytest.raises(openai.BadRequestError, match=re.escape(why)) as raised:
            refused.result()
    assert raised.value.param == "structured_outputs"
    assert len(pauses) > 10
    assert max(pauses) < 5
