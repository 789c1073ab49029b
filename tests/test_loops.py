"""uvloop's event loop where it is installed, asyncio's own elsewhere."""

import asyncio
import sys

import pytest

from jaxllm.loops import new_event_loop


@pytest.mark.parametrize("installed", [True, False])
def test_loop(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed:
        pytest.importorskip("uvloop")
    else:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert type(runner.get_loop()).__module__.startswith("uvloop") == installed
        assert runner.run(asyncio.sleep(0, "ran")) == "ran"
