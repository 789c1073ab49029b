"""Plots are drawn where matplotlib is, and refused with its name where it is not."""

import sys

import pytest

from jaxllm.bench.plot import plot_bars, plot_distributions, require_matplotlib
from jaxllm.errors import ConfigError

PNG = b"\x89PNG"


def test_pictures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    plot_bars(tmp_path / "bars.png", "throughput", "tokens/s", {"single": 10.0, "batch8": 80.0})
    plot_distributions(tmp_path / "cdf.png", "serve", {"ttft": [0.1, 0.2], "tpot": [], "itl": [0.01] * 5})
    assert (tmp_path / "bars.png").read_bytes().startswith(PNG)
    assert (tmp_path / "cdf.png").read_bytes().startswith(PNG)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'jaxllm\[plot\]'"):
        require_matplotlib()
