"""The tables of measured configurations: found by their facts, entered in place."""

from pathlib import Path

import jax
import pytest

from pallas_kernels import tuning


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "__file__", str(tmp_path / "tuning.py"))
    (tmp_path / "operation").mkdir()
    tuning._table.cache_clear()


@pytest.mark.usefixtures("table")
def test_a_written_configuration_is_taken_where_its_facts_hold() -> None:
    device = jax.devices()[0].device_kind
    tuning.write("operation", device, "kernel", {"bytes": 2}, {"block": 32})
    tuning.write("operation", device, "kernel", {"bytes": 4}, {"block": 16})
    tuning.write("operation", device, "kernel", {"bytes": 2}, {"block": 128})
    tuning._table.cache_clear()  # as another process would find it
    defaults = {"block": 64, "warps": 4}
    assert tuning.config("operation", "kernel", defaults, bytes=2, page=16) == {"block": 128, "warps": 4}
    assert tuning.config("operation", "kernel", defaults, bytes=4) == {"block": 16, "warps": 4}
    assert tuning.config("operation", "kernel", defaults, bytes=1) == defaults
    assert tuning.config("operation", "other", defaults, bytes=2) == defaults
    with tuning.trying("kernel", warps=8):
        assert tuning.config("operation", "kernel", defaults, bytes=2) == {"block": 128, "warps": 8}
    assert len(tuning.table_path("operation", device).read_text().splitlines()) == 4
    tuning.write("operation", device, "kernel", {"bytes": 2}, {"warps": 2})
    assert tuning.config("operation", "kernel", defaults, bytes=2) == {"block": 128, "warps": 2}, "the block stays"
