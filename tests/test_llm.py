"""The offline API over the real runner: a trained model of 260 thousand parameters against its recorded answers.

One engine serves all tests here. Its pool is so small that a full batch is preempted again and again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm import LLM, RequestOutput, SamplingParams
from jaxllm.errors import RequestError

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
TEXTS = [
    "Once upon a time", "Lily and Tom went", "The big red ball", "One day a bird", "There was a dog", "Tim was sad",
    "A little girl named Sue", "In the park",
]  # fmt: skip


@pytest.fixture(scope="module")
def llm(material: Path) -> Iterator[LLM]:
    llm = LLM(
        str(material / "derived/stories260K-hf"),
        max_model_len=128,
        max_num_seqs=32,
        max_num_batched_tokens=64,
        block_size=8,
        decode_steps=(1, 4),
        stream_interval_ms=10_000,  # however slow the machine is
        num_gpu_blocks_override=65,
    )
    with llm:
        yield llm
        load = llm.engine.load()
        assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)


@pytest.fixture(scope="module")
def goldens(material: Path) -> list[dict[str, Any]]:
    return json.loads((material / "derived/goldens/dev/stories260K.json").read_text())["cases"]


@pytest.fixture
def generate(llm: LLM) -> Callable[..., RequestOutput]:
    def one(prompt: Any = "Once upon a time", **params: Any) -> RequestOutput:
        (output,) = llm.generate(prompt, SamplingParams(**{"temperature": 0, "ignore_eos": True} | params))
        return output

    return one


def test_greedy_tokens_and_logprobs_are_the_recorded_ones(llm: LLM, goldens: list[dict[str, Any]]) -> None:
    params = [
        SamplingParams(
            temperature=0, max_tokens=len(case["greedy_ids"]), ignore_eos=True, logprobs=5, prompt_logprobs=0
        )
        for case in goldens
    ]
    for case, output in zip(goldens, llm.generate([case["prompt"] for case in goldens], params), strict=True):
        answer = output.outputs[0]
        assert output.prompt == case["prompt"]
        assert output.prompt_token_ids == case["prompt_ids"]
        assert output.finished
        steps = case["steps"]
        # Where two tokens are nearly as likely, either is right, and what follows is another story.
        certain = next((i for i, step in enumerate(steps) if step["margin"] < 0.01), len(steps))
        assert answer.token_ids[:certain] == case["greedy_ids"][:certain]
        assert answer.logprobs is not None
        for token, step, position in zip(answer.token_ids[:certain], steps, answer.logprobs, strict=False):
            assert position[token].rank == 1
            assert position[token].logprob == pytest.approx(step["lp"], abs=1e-4)
            assert [(t, p.logprob) for t, p in position.items()] == [
                (t, pytest.approx(p, abs=1e-4)) for t, p in step["top5"]
            ]
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        got = [p[t].logprob for p, t in zip(output.prompt_logprobs[1:], case["prompt_ids"][1:], strict=True) if p]
        np.testing.assert_allclose(got, case["prompt_logprobs"][1:], atol=1e-4)
        if certain == len(steps):
            assert answer.text == case["text"]
            assert answer.cumulative_logprob == pytest.approx(sum(step["lp"] for step in steps), abs=1e-3)


def test_alone_or_among_31_others_preempted_or_cached(llm: LLM) -> None:
    """Every kind of draw; the batch does not fit the pool, the second batch finds prefixes in the cache."""
    prompts = [f"{TEXTS[i % len(TEXTS)]} {'and then ' * (i % 5)}" for i in range(32)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 1},
        {"temperature": 1.2, "top_k": 20, "seed": 2},
        {"temperature": 0.8, "top_p": 0.9, "min_p": 0.02, "seed": 3},
        {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": 4},
    ]
    params = [SamplingParams(max_tokens=16 + i, ignore_eos=True, **kinds[i % len(kinds)]) for i in range(32)]
    preemptions = llm.engine.load().preemptions
    first = llm.generate(prompts, params)
    assert llm.engine.load().preemptions > preemptions
    second = llm.generate(prompts, params)
    assert sum(output.num_cached_tokens for output in second) > 0
    for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        llm.engine.flush_prefix_cache()
        (alone,) = llm.generate(prompt, own)
        assert alone.num_cached_tokens == 0
        assert len(alone.outputs[0].token_ids) == 16 + i
        assert alone.outputs[0].token_ids == first[i].outputs[0].token_ids == second[i].outputs[0].token_ids, prompt
        assert alone.outputs[0].text == first[i].outputs[0].text


def test_seeds_decide_the_draws(generate: Callable[..., RequestOutput]) -> None:
    def draw(seed: int) -> list[int]:
        return generate(temperature=1.0, seed=seed, max_tokens=20).outputs[0].token_ids

    assert draw(5) == draw(5)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def test_prompts_in_every_form(llm: LLM) -> None:
    ids = llm.tokenizer.encode("Once upon a time")
    outputs = llm.generate(["Once upon a time", {"prompt": "Once upon a time"}], GREEDY)
    outputs += llm.generate([ids, {"prompt_token_ids": ids}], GREEDY)
    outputs += llm.generate(ids, GREEDY) + llm.generate({"prompt_token_ids": ids}, GREEDY)
    assert len(outputs) == 6
    assert [output.prompt for output in outputs] == ["Once upon a time"] * 2 + [None] * 4
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1
    assert len({output.request_id for output in outputs}) == 6
    assert llm.generate([], GREEDY) == []


def test_lengths_and_the_contexts_end(llm: LLM, generate: Callable[..., RequestOutput]) -> None:
    for count in (1, 2, 7):
        answer = generate(max_tokens=count).outputs[0]
        assert (len(answer.token_ids), answer.finish_reason, answer.stop_reason) == (count, "length", None)
    prompt = llm.tokenizer.encode("Once upon a time " * 9)
    output = generate(prompt, max_tokens=None)
    assert len(prompt) + len(output.outputs[0].token_ids) == 128
    assert output.outputs[0].finish_reason == "length"
    metrics = output.metrics
    assert metrics.arrival_time <= metrics.first_scheduled_time <= metrics.first_token_time <= metrics.finished_time


def test_the_end_of_text_token_ends_and_is_no_text(
    llm: LLM, generate: Callable[..., RequestOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model hardly ever ends a story of 128 tokens, so another of its tokens is declared to be the end."""
    free = generate(max_tokens=20).outputs[0]
    eos = free.token_ids[9]
    monkeypatch.setattr(llm.engine._intake, "_info", replace(llm.engine.info, eos_token_ids=(0, eos)))
    answer = generate(max_tokens=20, ignore_eos=False).outputs[0]
    assert answer.token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", eos)
    assert answer.text == generate(max_tokens=len(answer.token_ids) - 1).outputs[0].text
    assert generate(max_tokens=20, ignore_eos=True).outputs == [free]


def test_stop_token_ids(generate: Callable[..., RequestOutput]) -> None:
    free = generate(max_tokens=20).outputs[0]
    stop = free.token_ids[9]
    end = free.token_ids.index(stop) + 1
    for keep in (False, True):
        answer = generate(max_tokens=20, stop_token_ids=(stop,), include_stop_str_in_output=keep).outputs[0]
        assert answer.token_ids == free.token_ids[:end]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        cut = generate(max_tokens=end if keep else end - 1).outputs[0]
        assert answer.text == cut.text


def test_several_steps_a_program_end_where_single_ones_would(llm: LLM, generate: Callable[..., RequestOutput]) -> None:
    """One token of the prompt's step, then ten programs of four steps; an end may fall on any of the four."""
    before = llm.engine.load().steps_decode
    free = generate(max_tokens=41).outputs[0]
    assert llm.engine.load().steps_decode - before == 10
    prompt = llm.tokenizer.encode("Once upon a time")
    logits = llm.encode_logits(prompt + free.token_ids[:-1])
    assert logits[len(prompt) - 1 :].argmax(-1).tolist() == free.token_ids
    for count in range(1, 10):
        assert generate(max_tokens=count).outputs[0].token_ids == free.token_ids[:count]
        stop = free.token_ids[count]
        end = free.token_ids.index(stop) + 1
        assert generate(max_tokens=41, stop_token_ids=(stop,)).outputs[0].token_ids == free.token_ids[:end]
        text = free.text[: 3 * count]
        (whole,) = llm.generate(prompt, replace(GREEDY, max_tokens=41, stop=(text[-2:],)))
        assert whole.outputs[0].text == free.text[: free.text.index(text[-2:])]
        assert whole.outputs[0].token_ids == free.token_ids[: len(whole.outputs[0].token_ids)]


def test_min_tokens(generate: Callable[..., RequestOutput]) -> None:
    free = generate(max_tokens=20).outputs[0]
    stop = free.token_ids[3]
    answer = generate(max_tokens=20, min_tokens=10, stop_token_ids=(stop,)).outputs[0]
    assert len(answer.token_ids) >= 10
    assert stop not in answer.token_ids[:9]  # not drawn while it may not end the request


def test_stop_strings_across_tokens(llm: LLM, generate: Callable[..., RequestOutput]) -> None:
    free = generate(max_tokens=40).outputs[0]
    stop = free.text[10:22]  # begins and ends within tokens, somewhere
    for keep in (False, True):
        answer = generate(max_tokens=40, stop=("never", stop), include_stop_str_in_output=keep, logprobs=0).outputs[0]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        end = free.text.index(stop)
        assert answer.text == free.text[: end + len(stop) if keep else end]
        assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
        assert len(answer.token_ids) < 40
        assert answer.logprobs is not None
        assert len(answer.logprobs) == len(answer.token_ids)
    metrics = generate(max_tokens=40, stop=stop).metrics
    assert metrics.finished_time is not None
    assert metrics.first_token_time <= metrics.finished_time
    assert llm.engine.load().pages_free == llm.engine.load().pages_total


def test_logprobs_have_the_shape_asked_for(generate: Callable[..., RequestOutput]) -> None:
    output = generate(temperature=1.0, seed=0, max_tokens=12, logprobs=3, prompt_logprobs=2)
    answer = output.outputs[0]
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 12
    for token, position in zip(answer.token_ids, answer.logprobs, strict=True):
        assert 3 <= len(position) <= 4
        assert next(iter(position)) == token
        assert sorted(p.rank for p in position.values())[:3] == [1, 2, 3]
        assert all(p.logprob <= 0 and isinstance(p.decoded_token, str) for p in position.values())
        ordered = sorted(position.values(), key=lambda p: p.rank)
        assert [p.logprob for p in ordered] == sorted((p.logprob for p in ordered), reverse=True)
    total = sum(position[token].logprob for token, position in zip(answer.token_ids, answer.logprobs, strict=True))
    assert answer.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert all(position and 2 <= len(position) <= 3 for position in output.prompt_logprobs[1:])
    assert generate([5], max_tokens=1, prompt_logprobs=1).prompt_logprobs == [None]
    assert generate(max_tokens=1).outputs[0].logprobs is None
    assert generate(max_tokens=1).outputs[0].cumulative_logprob is None


def test_stream_grows_to_what_generate_gives(llm: LLM) -> None:
    (whole,) = llm.generate("Once upon a time", GREEDY)
    partial = list(llm.stream("Once upon a time", GREEDY))
    assert len(partial) > 3
    assert [output.finished for output in partial] == [False] * (len(partial) - 1) + [True]
    for before, after in pairwise(partial):
        assert after.outputs[0].text.startswith(before.outputs[0].text)
        assert len(after.outputs[0].token_ids) > len(before.outputs[0].token_ids)
    assert partial[-1].outputs == whole.outputs


def test_streams_in_turns_and_one_left_early(llm: LLM) -> None:
    expected = [output.outputs[0] for output in llm.generate(TEXTS[:2], GREEDY)]
    first, second = (llm.stream(text, GREEDY) for text in TEXTS[:2])
    last = {}
    for one, other in zip(first, second, strict=False):
        last = {0: one.outputs[0], 1: other.outputs[0]}
    assert last[0].token_ids == expected[0].token_ids
    assert last[1].token_ids == expected[1].token_ids[: len(last[1].token_ids)]
    list(second)

    left = llm.stream(TEXTS[2], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    next(left)
    assert llm.engine.load().running == 1
    left.close()
    assert llm.engine.load().running == 0
    (after,) = llm.generate(TEXTS[0], GREEDY)
    assert after.outputs[0].token_ids == expected[0].token_ids


def test_logits_of_a_whole_prompt(llm: LLM, goldens: list[dict[str, Any]]) -> None:
    case = goldens[0]
    logits = llm.encode_logits(case["prompt"])
    assert logits.shape == (len(case["prompt_ids"]), 512)
    assert logits.dtype == np.float32
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    got = [logprobs[i, token] for i, token in enumerate(case["prompt_ids"][1:])]
    np.testing.assert_allclose(got, case["prompt_logprobs"][1:], atol=1e-4)
    assert logits[-1].argmax() == case["greedy_ids"][0]


def test_tokens_without_text(generate: Callable[..., RequestOutput]) -> None:
    with_text, without = generate(max_tokens=8).outputs[0], generate(max_tokens=8, detokenize=False).outputs[0]
    assert without.text == ""
    assert without.token_ids == with_text.token_ids
    with pytest.raises(RequestError, match="stop strings need text"):
        SamplingParams(detokenize=False, stop=("a",))


@pytest.mark.parametrize(
    ("prompt", "params", "why"),
    [
        ([1] * 128, {}, "prompt has 128 tokens, and the context holds 128"),
        ([[]], {}, "prompt is empty"),
        ("", {}, "prompt is empty"),
        ([[600]], {}, "prompt holds 600, which is no token: ids go from 0 to 511"),
        ({"text": "Hi"}, {}, r"prompt has the keys \['text'\]"),
        ([3.5], {}, "must be text or a list of token ids"),
        ("Hi", {"logprobs": 21}, "this engine reports at most 20"),
    ],
)
def test_bad_prompts_and_parameters(prompt: Any, params: dict[str, Any], why: str, llm: LLM) -> None:
    with pytest.raises(RequestError, match=why):
        llm.generate(prompt, SamplingParams(**params))
    assert not llm.engine.has_work


def test_one_bad_prompt_starts_none(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt holds 999"):
        llm.generate([[1, 2], [999]], GREEDY)
    assert not llm.engine.has_work
    with pytest.raises(RequestError, match="3 SamplingParams for 2 prompts"):
        llm.generate(["a", "b"], [GREEDY] * 3)


def test_chat_needs_a_template(llm: LLM) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        llm.chat([{"role": "user", "content": "Hi"}])


def test_chat_answers_conversations(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} {{ mark }}{% endif %}"
    monkeypatch.setattr(llm.tokenizer._hf, "chat_template", template)
    first = [{"role": "user", "content": "Once upon a time"}]
    second = [{"role": "user", "content": "Lily and "}, {"role": "assistant", "content": "Tom went"}]
    outputs = llm.chat([first, second], GREEDY, continue_final_message=True)
    expected = llm.generate([output.prompt_token_ids for output in outputs], GREEDY)
    assert [output.prompt for output in outputs] == ["Once upon a time", "Lily and Tom went"]
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]
    (one,) = llm.chat(first, GREEDY, chat_template_kwargs={"mark": "there"})
    assert one.prompt == "Once upon a time there"


def test_chat_offers_tools_and_documents(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for t in tools %}{{ t.function.name }} {% endfor %}{{ documents[0].text }} Once upon a time"
    monkeypatch.setattr(llm.tokenizer._hf, "chat_template", template)
    tools = [{"type": "function", "function": {"name": "look"}}]
    (output,) = llm.chat([{"role": "user", "content": "Hi"}], GREEDY, tools=tools, documents=[{"text": "sunny"}])
    assert output.prompt == "look sunny Once upon a time"


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_a_request_that_forbids_every_token_ends_with_an_error(llm: LLM, temperature: float) -> None:
    """What the model would make of no logits at all is nobody's wish."""
    ban = SamplingParams(temperature=temperature, max_tokens=9, allowed_token_ids=(7,), bad_words_ids=((7, 7, 7),))
    late = replace(ban, allowed_token_ids=(2, 7), bad_words_ids=((7, 7),), min_tokens=4)  # 2 ends a text
    plain = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(["Once upon a time"] * 3, [ban, plain, late])
    for output, drawn in ((outputs[0], 2), (outputs[2], 1)):
        (one,) = output.outputs
        assert (one.token_ids, one.finish_reason) == ([7] * drawn, "error")
        assert output.error is not None
        assert output.error.startswith("no token may be drawn here: allowed_token_ids, bad_words")
    assert len(outputs[1].outputs[0].token_ids) == 24
    assert outputs[1].outputs[0].token_ids == llm.generate("Once upon a time", plain)[0].outputs[0].token_ids


def test_an_engine_may_report_no_alternatives(material: Path) -> None:
    settings = {"max_num_seqs": 2, "max_num_batched_tokens": 16, "block_size": 8, "decode_steps": (1,)}
    with LLM(str(material / "derived/stories260K-hf"), max_logprobs=0, max_model_len=64, **settings) as llm:
        (output,) = llm.generate("Once upon a time", replace(GREEDY, max_tokens=3, logprobs=0, prompt_logprobs=0))
        told = output.outputs[0].logprobs
        assert told is not None
        assert [len(each) for each in told] == [1, 1, 1]
        assert output.prompt_logprobs is not None
        with pytest.raises(RequestError, match="logprobs=1"):
            llm.generate("Once", replace(GREEDY, logprobs=1))
