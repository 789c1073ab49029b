"""Configurations of the kernels, timed to name the best, which the operations' tuning tables keep."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

from kernels.attention import DECODES, EXTENDS, RAGGED
from kernels.mixtures import MIXTURES
from kernels.states import STATES
from kernels.timing import Timing, last_line
from pallas_kernels import tuning


@dataclass(frozen=True)
class Sweep:
    """Configurations of a kernel, and what to time them by: what reading leaves open, as how much is in flight."""

    operation: str
    kernel: str
    facts: dict[str, int]
    timings: tuple[Timing, ...]
    configurations: list[dict[str, int]]

    @property
    def name(self) -> str:
        """The operation and its kernel."""
        return f"{self.operation}-{self.kernel}"

    def run(self, keep: bool) -> None:
        """Times every configuration and names the best by the product of its times; keeps it in the table."""
        found = []
        for timing in self.timings:
            jax.block_until_ready(timing.arguments)
        with ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
            jobs = [
                (config, [pool.submit(timing.compile, self.kernel, **config) for timing in self.timings])
                for config in self.configurations
            ]
            compiled = [(config, [(program, program.exception()) for program in programs]) for config, programs in jobs]
        for config, programs in compiled:
            label = f"{self.operation} {self.kernel} {config}"
            errors = [error for _, error in programs if error]
            if errors:  # too much shared memory, for one
                print(f"{label} FAILED {last_line(errors[0])[:100]}", flush=True)
                continue
            times = [
                timing.seconds(program.result()) for timing, (program, _) in zip(self.timings, programs, strict=True)
            ]
            found.append((float(np.prod(times)), config))
            print(f"{label} {' '.join(f'{t * 1e6:.1f} us' for t in times)}", flush=True)
        if not found:
            raise SystemExit(f"sweep: no configuration of {self.kernel} ran; the reasons are above")
        best = min(found, key=lambda pair: pair[0])[1]
        print(f"best {self.operation} {self.kernel} {self.facts}: {best}", flush=True)
        if keep:
            tuning.write(self.operation, jax.devices()[0].device_kind, self.kernel, self.facts, best)


def _configurations(names: str, *rows: tuple[int, ...]) -> list[dict[str, int]]:
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


_RAGGED_CONFIGURATIONS = _configurations(
    "queries block warps stages",
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 32, 4, 3),
    (64, 128, 4, 2),
    (128, 64, 4, 2),
    (128, 64, 4, 3),
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 128, 8, 2),
)
_PREFILL_MIXTURES = _configurations(
    "rows inner warps stages size down_warps down_stages depth tma programs",
    (128, 128, 8, 4, 128, 4, 3, 64, 0, 0),
    (128, 128, 8, 4, 128, 4, 3, 64, 1, 0),
    (128, 128, 8, 4, 128, 4, 3, 64, 1, 264),
    (128, 128, 8, 4, 128, 8, 3, 64, 1, 0),
    (128, 128, 8, 3, 256, 8, 3, 64, 0, 0),
    (128, 128, 8, 3, 256, 8, 4, 64, 1, 132),
    (128, 64, 4, 3, 128, 4, 3, 64, 0, 0),
    (128, 64, 4, 3, 128, 4, 3, 64, 1, 264),
)


def _decode_mixtures(rows: int) -> list[dict[str, int]]:
    return _configurations(
        "rows inner warps stages size down_warps down_stages depth",
        (rows, 32, 4, 4, 32, 4, 4, 128),
        (rows, 64, 4, 3, 64, 4, 3, 64),
        (rows, 64, 4, 3, 64, 4, 3, 128),
        (rows, 64, 4, 4, 64, 4, 4, 128),
        (rows, 64, 4, 4, 128, 4, 4, 64),
        (rows, 128, 4, 4, 128, 4, 4, 64),
        (rows, 128, 8, 4, 128, 4, 4, 64),
        (rows, 128, 8, 4, 128, 8, 4, 64),
    )


SWEEPS = (
    Sweep(
        "paged_attention",
        "decode",
        {"head_dim": 128, "bytes": 2, "page": 64},
        (*DECODES[:1], *DECODES[3:]),
        [
            {"block": block, "warps": warps, "stages": stages, "programs": programs}
            for block, warps, stages in ((32, 4, 3), (32, 4, 4), (32, 2, 4), (64, 4, 2), (64, 4, 3), (64, 8, 3))
            for programs in (264, 528, 1056)
        ],
    ),
    Sweep(
        "paged_attention",
        "extend",
        {"head_dim": 128, "bytes": 2, "page": 64},
        (EXTENDS[0], EXTENDS[1], EXTENDS[3]),
        _configurations(
            "queries block warps stages registers",
            (128, 64, 8, 2, 0),
            (128, 64, 8, 3, 0),
            (128, 64, 8, 4, 0),
            (128, 64, 8, 2, 128),
            (128, 32, 8, 3, 0),
            (128, 32, 8, 3, 128),
            (128, 128, 8, 2, 0),
            (64, 64, 4, 2, 0),
            (64, 64, 4, 3, 0),
            (64, 32, 4, 3, 168),
            (64, 128, 4, 2, 0),
        ),
    ),
    Sweep("ragged_attention", "ragged", {"head_dim": 64, "bytes": 2}, RAGGED[:3], _RAGGED_CONFIGURATIONS),
    Sweep("ragged_attention", "ragged", {"head_dim": 128, "bytes": 2}, RAGGED[3:4], _RAGGED_CONFIGURATIONS),
    *(
        Sweep("moe", "grouped", {"rows": rows, "bytes": 2}, timings, configurations)
        for rows, timings, configurations in (
            (1, MIXTURES[:2], _decode_mixtures(16)),
            (4, MIXTURES[2:3], _decode_mixtures(16)),
            (16, MIXTURES[3:4], [*_decode_mixtures(16), *_decode_mixtures(32)]),
            (512, MIXTURES[4:], _PREFILL_MIXTURES),
        )
    ),
    Sweep(
        "causal_conv",
        "decode",
        {"taps": 4, "bytes": 2},
        STATES[0:3],
        _configurations("tokens channels warps", (1, 128, 1), (1, 256, 2), (1, 256, 1), (1, 512, 4), (1, 1024, 4)),
    ),
    Sweep(
        "causal_conv",
        "extend",
        {"taps": 4, "bytes": 2},
        STATES[3:6],
        _configurations(
            "tokens channels warps",
            (8, 256, 4),
            (16, 128, 4),
            (16, 256, 4),
            (16, 512, 8),
            (32, 128, 4),
            (32, 256, 8),
            (64, 64, 4),
        ),
    ),
    Sweep(
        "selective_scan",
        "decode",
        {"size": 16},
        STATES[6:9],
        _configurations(
            "channels warps ahead", (16, 1, 1), (32, 1, 1), (32, 2, 1), (64, 2, 1), (64, 4, 1), (128, 4, 1)
        ),
    ),
    Sweep(
        "selective_scan",
        "extend",
        {"size": 16},
        STATES[9:12],
        _configurations(
            "channels warps ahead",
            (8, 1, 8),
            (8, 1, 16),
            (16, 1, 4),
            (16, 1, 8),
            (16, 1, 16),
            (32, 1, 8),
            (32, 2, 8),
            (32, 4, 8),
        ),
    ),
    Sweep(
        "ssd",
        "decode",
        {"dim": 64, "size": 128},
        STATES[12:15],
        _configurations("dims warps", (8, 1), (16, 2), (16, 4), (32, 4), (32, 8), (64, 4), (64, 8)),
    ),
    Sweep(
        "ssd",
        "extend",
        {"dim": 64, "size": 128, "bytes": 2},
        STATES[15:18],
        _configurations(
            "tokens heads dims warps stages pass_dims pass_warps pass_stages",
            (128, 8, 64, 8, 2, 32, 4, 3),
            (128, 8, 64, 8, 3, 32, 4, 2),
            (128, 8, 64, 8, 2, 64, 4, 3),
            (128, 8, 64, 8, 2, 64, 8, 2),
            (128, 4, 64, 8, 2, 32, 8, 3),
            (128, 4, 64, 4, 2, 16, 4, 3),
            (64, 8, 64, 4, 2, 32, 4, 3),
            (64, 8, 64, 4, 3, 32, 4, 4),
            (64, 16, 64, 4, 3, 64, 4, 3),
            (64, 16, 64, 8, 2, 16, 4, 3),
        ),
    ),
)
