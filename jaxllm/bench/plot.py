"""Pictures of a benchmark, drawn with matplotlib (the optional extra `plot`)."""

from pathlib import Path
from typing import Any

from jaxllm.errors import ConfigError


def require_matplotlib() -> None:
    """Raise ConfigError when a plot cannot be drawn: asked before the benchmark runs, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'jaxllm[plot]'") from None


def plot_bars(path: Path, title: str, unit: str, values: dict[str, float]) -> None:
    """One bar per name, its value on top."""
    figure, axes = _figure(1)
    bars = axes[0].bar(list(values), list(values.values()), color="#3465a4")
    axes[0].bar_label(bars, fmt="%.4g")
    axes[0].set(title=title, ylabel=unit)
    axes[0].margins(y=0.15)
    figure.savefig(path)


def plot_distributions(path: Path, title: str, samples: dict[str, list[float]]) -> None:
    """The cumulative distribution of each metric (seconds in, milliseconds drawn), with median and p99 marked."""
    import numpy as np

    shown = {name: np.sort(values) * 1000 for name, values in samples.items() if values}
    figure, axes = _figure(len(shown))
    for axis, (name, values) in zip(axes, shown.items(), strict=True):
        axis.step(values, np.arange(1, len(values) + 1) / len(values), where="post", color="#3465a4")
        for percentile, style in ((50, "--"), (99, ":")):
            value = float(np.percentile(values, percentile))
            axis.axvline(value, linestyle=style, color="#cc0000", label=f"p{percentile} {value:.4g} ms")
        axis.set(xlabel=f"{name.upper()}, ms", ylim=(0, 1))
        axis.legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path)


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 4.0 * columns), 4.5), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]
