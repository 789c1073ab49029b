"""What the profiler's trace is counted into, on a trace made by hand and on a real one of the CPU."""

from dataclasses import dataclass, field

import jax.numpy as jnp
import pytest

from jaxllm.bench.trace import device_work, traced


@dataclass
class Event:
    name: str
    start_ns: float
    duration_ns: float


@dataclass
class Line:
    name: str
    events: list[Event]


@dataclass
class Plane:
    name: str
    lines: list[Line] = field(default_factory=list)


def test_kernels_launches_and_time_are_summed_up():
    streams = [
        Line("Stream #13(compute)", [Event("gemm", 1000, 500), Event("gemm", 2000, 500), Event("norm", 2400, 300)]),
        Line("Stream #14(memcpy)", [Event("MemcpyD2H", 5000, 1000)]),
        Line("XLA Ops", [Event("fusion", 1000, 500)]),
    ]
    host = [
        Line("python", [Event("cuGraphLaunch", 0, 10), Event("cudaGraphLaunch_v1", 0, 10), Event("cuLaunch", 0, 1)])
    ]
    work = device_work([Plane("/device:GPU:0", streams), Plane("/host:CPU", host)])
    assert work is not None
    assert (work.num_kernels, work.launches) == (3, 2)
    assert work.kernels["gemm"] == (2, pytest.approx(1e-6))
    assert work.busy == pytest.approx(2.2e-6)  # gemm and norm overlap by 100 ns
    assert work.span == pytest.approx(5e-6)


def test_a_cpu_has_no_streams():
    ran = []
    assert traced(lambda: ran.append(float(jnp.ones(8, jnp.float32).sum()))) is None
    assert ran == [8.0]
