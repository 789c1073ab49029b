"""What a request may ask for: every number is judged before it comes near the device."""

import math

import pytest

from jaxllm import SamplingParams
from jaxllm.errors import RequestError
from jaxllm.sampling_params import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIAS

REFUSED = [
    ("max_tokens", 0, "must be at least 1"),
    ("max_tokens", -5, "must be at least 1"),
    ("max_tokens", 1.0, "must be an integer or None"),
    ("max_tokens", True, "must be an integer or None"),
    ("min_tokens", -1, "must not be negative"),
    ("min_tokens", 17, "must not exceed max_tokens=16"),
    ("temperature", -0.5, "must not be negative; 0 is greedy"),
    ("temperature", math.nan, "must be a finite number"),
    ("temperature", math.inf, "must be a finite number"),
    ("temperature", 1e39, "must be a finite number"),  # infinite in the device's float32
    ("temperature", "hot", "must be a finite number"),
    ("temperature", True, "must be a finite number"),
    ("top_p", 0, "must be in \\(0, 1\\]; for greedy decoding set temperature=0"),
    ("top_p", -0.1, "must be in"),
    ("top_p", 1.1, "must be in"),
    ("top_p", math.nan, "must be a finite number"),
    ("top_k", -2, "must be positive, or 0 or -1"),
    ("top_k", 2**31, "must be below 2\\*\\*31"),
    ("top_k", 1.5, "must be an integer"),
    ("min_p", -0.1, "must be in"),
    ("min_p", 1.1, "must be in"),
    ("repetition_penalty", 0, "must be positive"),
    ("repetition_penalty", math.nan, "must be a finite number"),
    ("frequency_penalty", 2.1, "must be in"),
    ("presence_penalty", -2.1, "must be in"),
    ("seed", -1, "must be in"),
    ("seed", 2**63, "must be in"),
    ("logprobs", -1, "must not be negative"),
    ("prompt_logprobs", -1, "must not be negative"),
    ("stop", [""], "must hold non-empty strings"),
    ("stop", [3], "must hold non-empty strings"),
    ("stop_token_ids", [-1], "must hold token ids"),
    ("stop_token_ids", [1.5], "must hold token ids"),
    ("n", 0, "must be in \\[1, 128\\]"),
    ("n", 129, "must be in \\[1, 128\\]"),
    ("n", None, "must be an integer"),
    ("best_of", 0, "must be in \\[n, 128\\], and n is 1"),
    ("length_penalty", math.nan, "must be a finite number"),
    ("early_stopping", "soon", "must be True, False or 'never'"),
    ("logit_bias", {1: 100.5}, "must be numbers in \\[-100, 100\\]"),
    ("logit_bias", {1: math.nan}, "must be numbers in"),
    ("logit_bias", {-1: 1.0}, "keys must be token ids"),
    ("logit_bias", [1], "must map token ids to numbers"),
    ("bad_words", "word", "must hold non-empty strings"),
    ("bad_words", [""], "must hold non-empty strings"),
    ("bad_words_ids", [[]], "none of them empty"),
    ("bad_words_ids", [[-1]], "must hold sequences of token ids"),
    ("allowed_token_ids", [], "must leave a token that is no bad word"),
    ("allowed_token_ids", [-1], "must hold token ids"),
    ("thinking_token_budget", -1, "must be in"),
    ("thinking_token_ids", [1, 1], "must be two token ids"),
    ("thinking_token_ids", [1], "must be two token ids"),
    ("truncate_prompt_tokens", 0, "must be positive, or -1"),
    ("truncate_prompt_tokens", -2, "must be positive, or -1"),
    ("logits_processors", {1: 2}, "must map names to arguments"),
    ("logits_processors", ["a"], "must map names to arguments"),
]


@pytest.mark.parametrize(("name", "value", "why"), REFUSED, ids=lambda value: str(value)[:20])
def test_refused_by_name(name: str, value: object, why: str) -> None:
    with pytest.raises(RequestError, match=f"^{name}=.*{why}") as raised:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert raised.value.param == name


def test_min_tokens_without_a_limit_is_bounded_too() -> None:
    with pytest.raises(RequestError, match="min_tokens=2147483648: must be below"):
        SamplingParams(max_tokens=None, min_tokens=2**31)


def test_an_unknown_parameter_is_an_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]


def test_forms_that_mean_the_same() -> None:
    assert SamplingParams(stop="a") == SamplingParams(stop=["a"])  # type: ignore[arg-type]
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0)
    assert SamplingParams(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)  # type: ignore[arg-type]
    assert SamplingParams(logit_bias={"7": 1}) == SamplingParams(logit_bias={7: 1})  # type: ignore[dict-item]
    assert SamplingParams(bad_words_ids=[[1, 2]]).bad_words_ids == ((1, 2),)  # type: ignore[arg-type]
    assert (SamplingParams(n=2).num_samples, SamplingParams(n=2, best_of=5).num_samples) == (2, 5)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0), "513 tokens, and at most 512"),
        ("bad_words_ids", [range(MAX_BAD_WORD_TOKENS + 1)], "a word of 9 tokens, and at most 8"),
        ("bad_words_ids", [(1, token) for token in range(MAX_BAD_WORDS + 1)], "129 sequences .* and at most 128"),
    ],
    ids=["biases", "length", "words"],
)
def test_what_the_device_has_no_room_for(name: str, value: object, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    many = [[token] for token in range(1000)]
    assert len(SamplingParams(bad_words_ids=many).bad_words_ids) == 1000  # type: ignore[arg-type]


def test_allowed_tokens_that_are_all_bad_words() -> None:
    with pytest.raises(RequestError, match="must leave a token that is no bad word"):
        SamplingParams(allowed_token_ids=(1, 2), bad_words_ids=((2,), (1,), (1, 5)))


@pytest.mark.parametrize(
    "changes",
    [
        {"top_p": 0.9}, {"top_k": 3}, {"frequency_penalty": 1.0}, {"temperature": 0.5}, {"stop": ["a"]},
        {"logit_bias": {1: 1.0}}, {"logprobs": 1}, {"min_tokens": 1}, {"allowed_token_ids": (1,)},
        {"logits_processors": {"a": 1}}, {"thinking_token_budget": 1}, {"bad_words": ("a",)},
    ],
    ids=str,
)  # fmt: skip
def test_beam_search_takes_nothing_that_draws_or_changes(changes: dict) -> None:
    with pytest.raises(RequestError, match="leave it out") as raised:
        SamplingParams(use_beam_search=True, **changes)
    assert raised.value.param == next(iter(changes))
    SamplingParams(use_beam_search=True, temperature=0)
