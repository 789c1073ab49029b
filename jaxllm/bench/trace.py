"""What the device did while something ran: kernels, command buffers and time, from the profiler's trace.

The profiler sees what is inside a command buffer only while there are none, so that kernels and command buffers are
counted in runs of their own: XLA_FLAGS=--xla_gpu_enable_command_buffer= turns them off.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WITHOUT_COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="
_LAUNCH = re.compile(r"cu(da)?GraphLaunch")
_COPY = re.compile(r"mem(cpy|set)", re.IGNORECASE)


@dataclass(frozen=True)
class DeviceWork:
    """kernels: by name, how many ran and their seconds in all. launches: of command buffers. busy: seconds in which
    anything ran on the device. span: from the first of it to the end of the last."""

    kernels: dict[str, tuple[int, float]]
    launches: int
    busy: float
    span: float

    @property
    def num_kernels(self) -> int:
        return sum(count for count, _ in self.kernels.values())


def traced(run: Callable[[], None]) -> DeviceWork | None:
    """The device's work while `run` ran; None where the profiler tells of none (a CPU)."""
    import jax

    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        files = sorted(Path(directory).rglob("*.xplane.pb"))
        planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(str(file)).planes]
        return device_work(planes)


def device_work(planes: Iterable[Any]) -> DeviceWork | None:
    """Summed up over a trace's planes; of the device those of its streams, of the host the launches it made."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    spans: list[tuple[float, float]] = []
    launches = 0
    for plane in planes:
        on_device = "GPU" in plane.name
        for line in plane.lines:
            if on_device and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                if not on_device:
                    launches += _LAUNCH.search(event.name) is not None
                    continue
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
                if not _COPY.search(event.name):
                    counts[event.name] += 1
                    seconds[event.name] += event.duration_ns / 1e9
    if not spans:
        return None
    busy = sum(end - start for start, end in _union(spans)) / 1e9
    span = (max(end for _, end in spans) - min(start for start, _ in spans)) / 1e9
    return DeviceWork({name: (counts[name], seconds[name]) for name in counts}, launches, busy, span)


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times, without overlaps."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
