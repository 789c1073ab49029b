"""What the engine tells JAX before it touches a device."""

import os

import pytest

from jaxllm.config import EngineConfig
from jaxllm.errors import ConfigError
from jaxllm.runner.resolve import claim_memory, generation_defaults

SHARES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")


@pytest.mark.parametrize("named", [None, *SHARES])
def test_the_users_own_share_of_memory_stands(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    for name in SHARES:
        monkeypatch.setenv(name, "0.5")
        monkeypatch.delenv(name)
    if named is not None:
        monkeypatch.setenv(named, "0.4")
    claim_memory(EngineConfig(gpu_memory_utilization=0.8))
    expected = {SHARES[0]: "0.8"} if named is None else {named: "0.4"}
    assert {name: os.environ[name] for name in SHARES if name in os.environ} == expected


MAKERS = {"temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2], "do_sample": True, "top_k": None}


@pytest.mark.parametrize(("options", "expected"), [
    ({}, {"temperature": 0.6, "top_p": 0.95}),
    ({"generation_config": "vllm"}, {}),
    ({"generation_config": "vllm", "override_generation_config": {"min_p": 0.1}}, {"min_p": 0.1}),
    (
        {"override_generation_config": {"temperature": 0, "max_new_tokens": 9}},
        {"temperature": 0, "top_p": 0.95, "max_tokens": 9},
    ),
])  # fmt: skip
def test_what_requests_leave_unset(options: dict, expected: dict) -> None:
    assert generation_defaults(EngineConfig(**options), MAKERS) == expected


@pytest.mark.parametrize(("override", "message"), [
    ({"temperatur": 1}, r"unknown parameter 'temperatur'; did you mean 'temperature'\?"),
    ({"top_p": 2}, r"override_generation_config: top_p=2: must be in \(0, 1\]"),
])  # fmt: skip
def test_overrides_that_cannot_be(override: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generation_defaults(EngineConfig(override_generation_config=override), {})


def test_the_makers_values_are_checked_unless_they_are_overridden() -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: temperature='hot': must be"):
        generation_defaults(EngineConfig(), {"temperature": "hot"})
    config = EngineConfig(override_generation_config={"temperature": 0.5})
    assert generation_defaults(config, {"temperature": "hot"}) == {"temperature": 0.5}


@pytest.mark.parametrize(("given", "names"), [("a", ("a",)), (("a", "b"), ("a", "b")), (["a"], ("a",)), (None, ())])
def test_served_names_are_one_or_several(given: str | list[str] | None, names: tuple[str, ...]) -> None:
    assert EngineConfig(served_model_name=given).served_model_name == names
    with pytest.raises(ConfigError, match="a name is empty"):
        EngineConfig(served_model_name=("a", ""))
