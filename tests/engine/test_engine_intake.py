"""What is refused, with the field at fault and the numbers; what is made of the rest."""

from dataclasses import replace

import pytest
from echo_runner import EOS, VOCABULARY, EchoRunner, echo_engine

from jaxllm.engine import Engine
from jaxllm.errors import ConfigError, RequestError
from jaxllm.sampling_params import MAX_STOP_TOKENS, SamplingParams


@pytest.mark.parametrize(
    ("prompt", "params", "param", "why"),
    [
        ([], {}, "prompt", "prompt is empty"),
        ([1] * 128, {}, "prompt", r"prompt has 128 tokens, and the context holds 128, 1 of them new"),
        ([1] * 500, {}, "prompt", r"prompt has 500 tokens, and the context holds 128"),
        ([1, VOCABULARY], {}, "prompt", rf"prompt holds {VOCABULARY}, which is no token: ids go from 0 to 999"),
        ([-1], {}, "prompt", r"prompt holds -1"),
        ([1.5], {}, "prompt", "integers"),
        (["a"], {}, "prompt", "integers"),
        ([1], {"logprobs": 6}, "logprobs", r"logprobs=6: this engine reports at most 5 .*--max-logprobs"),
        ([1], {"prompt_logprobs": 7}, "prompt_logprobs", r"prompt_logprobs=7"),
        ([1], {"stop_token_ids": (VOCABULARY,)}, "stop_token_ids", "stop_token_ids holds 1000"),
        ([1], {"stop_token_ids": tuple(range(MAX_STOP_TOKENS))}, "stop_token_ids", "17 different ids"),
        ([1], {"logit_bias": {VOCABULARY: 1}}, "logit_bias", "logit_bias holds 1000"),
        ([1], {"allowed_token_ids": (1, VOCABULARY)}, "allowed_token_ids", "allowed_token_ids holds 1000"),
        ([1], {"bad_words_ids": ((1, VOCABULARY),)}, "bad_words_ids", "bad_words_ids holds 1000"),
        (
            [1],
            {"allowed_token_ids": (5, 6), "stop_token_ids": (5, 6, 7), "min_tokens": 1},
            "min_tokens",
            "leaves only tokens that end the answer",
        ),
        ([1] * 20, {"max_tokens": None, "min_tokens": 14}, "min_tokens", "room for 13 tokens behind a prompt of 20"),
        ([1], {"bad_words": ("a",)}, "bad_words", "text is the tokenizer's part"),
        ([1], {"thinking_token_budget": 3}, "thinking_token_budget", "no tokens are known to start and end thinking"),
        (
            [1],
            {"thinking_token_budget": 3, "thinking_token_ids": (1, VOCABULARY)},
            "thinking_token_ids",
            "thinking_token_ids holds 1000",
        ),
        ([1], {"use_beam_search": True, "n": 3}, "n", "3 beams and 1 ids that end them take the 6 most"),
        ([1], {"use_beam_search": True, "best_of": 3}, "best_of", "--max-logprobs"),
        ([1], {"max_tokens": 100}, "max_tokens", r"come to 101 tokens, and the whole KV cache holds 33"),
        ([1] * 40, {"max_tokens": 1}, "prompt", r"prompt \(40 tokens\)"),
    ],
)
def test_refused(prompt: list, params: dict, param: str, why: str) -> None:
    engine = echo_engine(num_pages=9)  # 32 tokens of KV cache, in a context of 128
    with pytest.raises(RequestError, match=why) as caught:
        engine.make_request(prompt, SamplingParams(**params))
    assert caught.value.param == param


def test_a_model_with_too_many_ends_of_text_is_refused_at_start() -> None:
    runner = EchoRunner()
    runner.info = replace(runner.info, eos_token_ids=tuple(range(MAX_STOP_TOKENS + 1)))
    with pytest.raises(ConfigError, match="eos_token_id holds 17 ids, and at most 16"):
        Engine(runner)


def test_max_tokens_is_cut_to_the_context() -> None:
    engine = echo_engine()
    assert engine.make_request([1] * 100, SamplingParams(max_tokens=1000)).max_total == 128
    assert engine.make_request([1] * 127, SamplingParams(max_tokens=None)).max_total == 128
    assert engine.make_request([1] * 100, SamplingParams(max_tokens=5)).max_total == 105


def test_min_tokens_that_the_context_cuts_off_are_refused() -> None:
    engine = echo_engine()
    assert engine.make_request([1] * 100, SamplingParams(max_tokens=1000, min_tokens=28)).max_total == 128
    with pytest.raises(RequestError, match="min_tokens=29: there is room for 28 tokens") as caught:
        engine.make_request([1] * 100, SamplingParams(max_tokens=1000, min_tokens=29))
    assert caught.value.param == "min_tokens"


def test_priorities_that_the_policy_does_not_heed_are_refused() -> None:
    with pytest.raises(RequestError, match=r"priority=-1: .* --scheduling-policy priority") as caught:
        echo_engine().make_request([1], SamplingParams(), priority=-1)
    assert caught.value.param == "priority"
    runner = EchoRunner()
    runner.scheduler_config = replace(runner.scheduler_config, policy="priority")
    assert Engine(runner).make_request([1], SamplingParams(), priority=-1).priority == -1


def test_as_many_as_possible_is_cut_to_the_cache_too() -> None:
    engine = echo_engine(num_pages=9)
    request = engine.make_request([1], SamplingParams(max_tokens=None))
    assert request.max_total == 33  # the last token's keys and values are never computed
    engine.add(request)


def test_stop_ids_are_the_models_and_the_requests_without_repeats() -> None:
    engine = echo_engine()
    assert engine.make_request([1], SamplingParams(stop_token_ids=(5, EOS, 5))).stop_ids == (EOS, 5)
    assert engine.make_request([1], SamplingParams(stop_token_ids=(5,), ignore_eos=True)).stop_ids == (5,)


def test_seeds_are_the_clients_or_drawn_anew_but_the_same_after_a_restart() -> None:
    drawn = []
    for _ in range(2):
        engine = echo_engine()
        drawn.append([engine.make_request([1], SamplingParams()).seed for _ in range(3)])
        assert engine.make_request([1], SamplingParams(seed=7)).seed == 7
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_ids_are_fresh_when_none_is_given() -> None:
    engine = echo_engine()
    assert (
        engine.make_request([1], SamplingParams()).request_id != engine.make_request([1], SamplingParams()).request_id
    )
    assert engine.make_request([1], SamplingParams(), request_id="mine").request_id == "mine"


def test_prompts_are_cut_on_their_left() -> None:
    engine = echo_engine()
    prompt = list(range(1, 301))

    def kept(**params: int) -> list[int]:
        return engine.make_request(prompt, SamplingParams(**params)).prompt

    assert kept(truncate_prompt_tokens=5) == prompt[-5:]
    assert kept(truncate_prompt_tokens=-1, max_tokens=28) == prompt[-100:]
    assert kept(truncate_prompt_tokens=-1, max_tokens=1000) == prompt[-64:]
    assert engine.make_request([7, 8], SamplingParams(truncate_prompt_tokens=5)).prompt == [7, 8]
    with pytest.raises(RequestError, match="prompt has 200 tokens"):
        kept(truncate_prompt_tokens=200)
