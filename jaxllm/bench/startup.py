"""How long an engine takes to be ready, phase by phase, in processes of their own.

`python -m jaxllm.bench.startup '{"model": ...}'` starts one and prints its figures as JSON.
"""

import json
import subprocess
import sys
import time
from typing import Any

from jaxllm.bench.clients import BenchError


class Phases:
    """A progress report that keeps, for each phase, the seconds from its first call to its last."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def report(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        self._first.setdefault(what, now)
        self._last[what] = now

    def seconds(self) -> dict[str, float]:
        return {what: self._last[what] - first for what, first in self._first.items()}


def start_once(config: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one start in a fresh process: {"total": to ready, "first_token": after that, "phases": {...}}.

    `total` counts from the start of the interpreter; the phases from the engine's reports, besides "imports".
    """
    begin = time.monotonic()
    command = [sys.executable, "-m", "jaxllm.bench.startup", json.dumps(config)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the engine did not start (status {done.returncode}); see its error above")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {
        "total": figures["ready"] - begin,
        "first_token": figures["first_token"] - figures["ready"],
        "phases": {"imports": figures["imported"] - begin, **figures["phases"]},
    }


def _main(config: dict[str, Any]) -> None:
    from jaxllm.config import EngineConfig

    if config.get("decode_steps"):
        config["decode_steps"] = tuple(config["decode_steps"])
    engine_config = EngineConfig(**config)
    from jaxllm.bench.offline import run_batch
    from jaxllm.bench.workloads import Prompt
    from jaxllm.engine import Engine

    imported = time.monotonic()
    phases = Phases()
    engine = Engine.start(engine_config, progress=phases.report)
    ready = time.monotonic()
    run_batch(engine, [Prompt([1], 1)])
    figures = {
        "imported": imported,
        "ready": ready,
        "first_token": time.monotonic(),
        "phases": phases.seconds(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
