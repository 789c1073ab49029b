"""What the serving process does beside its rooms."""

import gc

import pytest

from jaxllm.config import EngineConfig, ServerConfig
from jaxllm.server import main


def test_what_is_loaded_is_out_of_the_collectors_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "load", lambda *arguments: arguments)
    config = EngineConfig(model="demo")
    before = gc.get_freeze_count()
    try:
        assert main._Server(config, ServerConfig(), None)._load_now()[0] is config
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
