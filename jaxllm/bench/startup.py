"""How long an engine takes to be ready, phase by phase, in processes of their own.

`python -m jaxllm.bench.startup '{"model": ...}'` starts one and prints its figures as JSON.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from jaxllm.bench.clients import BenchError


def start_once(config: dict[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Seconds of one start in a fresh process: {"total": to ready, "first_token": after that, "phases": {...},
    "programs": how many were loaded and how many compiled}.

    `total` counts from the start of the interpreter; the phases are "imports" and the runner's, some of which run
    beside each other.
    """
    begin = time.monotonic()
    command = [sys.executable, "-m", "jaxllm.bench.startup", json.dumps(config)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise BenchError(f"the engine did not start (status {done.returncode}); see its error above")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {
        "total": figures["ready"] - begin,
        "first_token": figures["first_token"] - figures["ready"],
        "phases": {"imports": figures["imported"] - begin, **figures["phases"]},
        "programs": figures["programs"],
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
    engine = Engine.start(engine_config)
    ready = time.monotonic()
    run_batch(engine, [Prompt([1], 1)])
    engine.keep()
    runner: Any = engine.runner
    compiler = runner.table.compiler
    figures = {
        "imported": imported,
        "ready": ready,
        "first_token": time.monotonic(),
        "phases": runner.start_seconds,
        "programs": {"loaded": compiler.loaded, "compiled": compiler.compiled},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
