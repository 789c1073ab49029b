"""What a request may ask for: every number is judged before it comes near the device."""

import math

import pytest

from jaxllm import SamplingParams
from jaxllm.errors import RequestError

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
