"""What the engine tells JAX before it touches a device."""

import os

import pytest

from jaxllm.config import EngineConfig
from jaxllm.runner.resolve import claim_memory

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
