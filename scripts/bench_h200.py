"""Measures the engine on a GPU machine and writes it down: python3 scripts/bench_h200.py [--serving] [--families].

Every kernel against its reference, what a model draws through them, starts with empty and filled caches, the fixed
workloads with kernels and command buffers per step, served loads over HTTP and gRPC, and a model of every block kind;
random weights, vLLM's figures and the floors beside. Each piece runs in processes of its own and is written to --json
as soon as it is there, beside what was measured there on the same device before, each row with its commit: a run that
is cut off goes on with --resume.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxllm.bench import agreement, measure, peers, results, serving
from jaxllm.bench.clients import Target, describe
from jaxllm.bench.server_process import started_server
from jaxllm.bench.shapes import model_directory
from jaxllm.bench.startup import start_once
from jaxllm.bench.trace import WITHOUT_COMMAND_BUFFERS
from jaxllm.bench.workloads import WORKLOADS, Workload

ROOT = Path(__file__).resolve().parents[1]
PIECES = ("kernels", "tokens", "programs", "startup", "workloads", "profile", "serving", "families")
METHODS = {"workloads": "rows"}
MODELS = tuple(peers.VLLM_SECONDS)
ENGINE = {"load_format": "dummy", "max_model_len": 33280, "enable_prefix_caching": False}
AGREEMENT_ENGINE = {
    "max_model_len": 1024, "max_num_seqs": 16, "max_num_batched_tokens": 1024, "gpu_memory_utilization": 0.1,
    "enable_prefix_caching": False,
}  # fmt: skip
PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "jax-triton", "triton", "flax", "numpy")
SERVING_PACKAGES = ("grpcio", "uvicorn", "uvloop", "httptools")
SERVED = ("llama-8b",)
PROTOCOLS = ("http", "grpc")
SMOKE_ENGINE = {
    "max_model_len": 64, "max_num_seqs": 2, "max_num_batched_tokens": 64, "block_size": 16, "decode_steps": (1,),
    "enable_prefix_caching": False,
}  # fmt: skip
SMOKE_WORKLOADS = {"batch8": Workload(2, 24, 6), "prefill": Workload(2, 32, 1)}
SMOKE_LOADS = {
    "32 streams and a long prompt": serving.Load(2, 2, 8, 12, long=32),
    "64 streams": serving.Load(2, 4, 8, 6),
}


class Bench:
    """One call of the script: what is asked for, and the document that fills up."""

    def __init__(self, arguments: argparse.Namespace, cache: Path):
        """cache: where models' programs are kept between pieces, a directory for each."""
        self.asked = arguments
        self.cache = cache
        self.smoke: bool = arguments.smoke
        self.models: list[str] = ["demo"] if self.smoke else arguments.models
        self.engine: dict[str, Any] = SMOKE_ENGINE if self.smoke else ENGINE
        known = SMOKE_WORKLOADS if self.smoke else WORKLOADS
        self.workloads = {name: known[name] for name in known if name in arguments.workloads}
        self.environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if self.smoke else {})
        self.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.origin = _origin(self.environment, arguments.commit)
        self.command = shlex.join(["python3", "scripts/bench_h200.py", *sys.argv[1:]])
        self.failures: list[str] = []
        self.document = self._write({})

    def run(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            print(f"== {piece}", flush=True)
            for name, row in getattr(self, METHODS.get(piece, piece))():
                self.document = self._write({name: [row]})
                print(json.dumps(row), flush=True)

    def kernels(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every implementation of every operation against numpy, an operation at a time."""
        found = sorted(path.parent.name for path in (ROOT / "pallas_kernels").glob("*/shapes.py"))
        todo = [name for name in self.asked.kernels or found if not self._done("kernels", {"only": f"{name}-"})]
        with ThreadPoolExecutor(self.asked.jobs) as pool:
            futures = [pool.submit(self._check, operation) for operation in todo[: 1 if self.smoke else None]]
            for future in as_completed(futures):
                row = future.result()
                if not row["agree"]:
                    self.failures.append(f"kernels of {row['operation']}")
                yield "kernels", row

    def _check(self, operation: str) -> dict[str, Any]:
        """What check_kernels says of an operation, in a process that takes no more of the device than it needs."""
        only = f"{operation}-"
        line = [sys.executable, str(ROOT / "scripts" / "check_kernels.py"), "--only", only]
        environment = self.environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        began = time.perf_counter()
        done = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{operation} ")]
        names = ("operation", "implementation", "type", "cases", "bad", "error", "relative", "worst")
        return {
            "only": only,
            "operation": operation,
            "agree": done.returncode == 0 and "all cases agree" in done.stdout,
            "seconds": time.perf_counter() - began,
            "implementations": [dict(zip(names, line, strict=False)) for line in lines if len(line) == len(names)],
            "complaints": [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "WRONG"))],
        }

    def tokens(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the demo model draws through kernels and through references, in both types, all side by side."""
        lengths = {"num_prompt": 24, "num_output": 8} if self.smoke else {"num_prompt": 600, "num_output": 64}
        dtypes = ["float32"] if self.smoke else list(agreement.LEADS)
        todo = [dtype for dtype in dtypes if not self._done("tokens", {"model": "demo", "dtype": dtype})]

        def drawn(dtype: str, kernels: dict[str, str]) -> list[dict[str, Any]]:
            engine = (SMOKE_ENGINE if self.smoke else AGREEMENT_ENGINE) | {"dtype": dtype, "compilation_cache_dir": ""}
            order = {"what": "tokens", "model": "demo", "engine": engine, **lengths}
            environment = {name: value for name, value in self.environment.items() if name != "JAXLLM_KERNELS"}
            return list(self._measure(order, environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | kernels))

        with ThreadPoolExecutor(2 * len(dtypes)) as pool:
            pairs = [
                (dtype, pool.submit(drawn, dtype, {"JAXLLM_KERNELS": "reference"}), pool.submit(drawn, dtype, {}))
                for dtype in todo
            ]
            for dtype, *futures in pairs:
                rows = [row for future in futures for row in future.result()]
                if len(rows) < 2:
                    continue  # _measure has said which failed
                drawn_by = [[agreement.Drawn(**one) for one in row["drawn"]] for row in rows]
                row = agreement.compare(*drawn_by, dtype)
                if not row["agree"]:
                    self.failures.append(f"tokens of the demo model in {dtype}: {row['parted']}")
                if not self.smoke and "triton" not in rows[1]["backends"]["decode_attention"]:
                    self.failures.append(f"tokens of the demo model in {dtype}: no kernel drew them")
                yield "tokens", {"model": "demo", "dtype": dtype} | row | {"backends": rows[1]["backends"]}

    def programs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Compiles what the models and families need, all side by side, so that their pieces start with it."""
        engines = {model: self._engine_of(model) for model in self.models}
        engines |= {model: self._family_engine(model) for model in self._families()}
        environment = self.environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

        def compiled(model: str) -> list[dict[str, Any]]:
            return list(self._measure({"what": "compile", "model": model, "engine": engines[model]}, environment))

        with ThreadPoolExecutor(len(engines)) as pool:
            for future in as_completed([pool.submit(compiled, model) for model in engines]):
                yield from (("programs", row) for row in future.result())

    def startup(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Starts in fresh processes, with nothing in the caches and with what the first one left there."""
        for model in self.models:
            if self._done("startup", {"model": model, "start": "warm"}):
                continue
            engine = self._engine_of(model)
            shutil.rmtree(engine["compilation_cache_dir"], ignore_errors=True)
            for start in ("cold", "warm"):
                figures = start_once(engine | {"model": model_directory(model)}, self.environment)
                row = {"model": model, "start": start, "seconds": figures["total"]} | figures
                if (vllm := peers.VLLM_START_SECONDS.get(model, {}).get(start)) is not None:
                    row |= {"vllm_seconds": vllm, "ratio_to_vllm": figures["total"] / vllm}
                yield "startup", row

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The fixed workloads, the best of --repeats runs."""
        yield from self._workloads("seconds", {"what": "workloads", "repeats": self.asked.repeats})

    def profile(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the profiler counts of the workloads' steps; added to their rows."""
        yield from self._workloads("command_buffers_per_step", {"what": "profile", "command_buffers": True})
        flags = " ".join([self.environment.get("XLA_FLAGS", ""), WITHOUT_COMMAND_BUFFERS]).strip()
        environment = self.environment if self.smoke else self.environment | {"XLA_FLAGS": flags}
        yield from self._workloads("kernels_per_step", {"what": "profile", "command_buffers": False}, environment)

    def serving(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """One server with both fronts, and every load over each."""
        loads = SMOKE_LOADS if self.smoke else serving.LOADS
        for model in ["demo"] if self.smoke else SERVED:
            todo = [
                (protocol, name)
                for protocol in self.asked.protocols
                for name in loads
                if self.smoke or name in self.asked.loads
                if not self._done("serving", {"protocol": protocol, "load": name})
            ]
            if not todo:
                continue
            with tempfile.TemporaryDirectory() as directory:
                path = model if self.smoke else serving.with_tokenizer(Path(model_directory(model)), Path(directory))
                options = [word for name, value in self._engine_of(model).items() for word in _option(name, value)]
                with started_server(["--model", str(path), *options], self.environment) as addresses:
                    targets = {"grpc": f"grpc://{addresses['grpc']}", "http": addresses["http"]}
                    vocab_size = describe(Target.parse(targets["grpc"])).vocab_size
                    assert vocab_size is not None
                    for seed, (protocol, name) in enumerate(todo):
                        target = Target.parse(targets[protocol], describe(Target.parse(targets["grpc"])).name)
                        after = 0.1 if self.smoke else serving.LONG_AFTER
                        row = serving.run(name, loads[name], target, vocab_size, self.asked.seed + seed, after)
                        row |= {"packages": _versions(SERVING_PACKAGES)} | self._beside_offline(model, name, row)
                        yield "serving", {"model": model} | row

    def families(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """A model of every block kind: what it decodes, or embeds, of what the card would allow."""
        for model in self._families():
            if self._done("families", {"model": model}):
                continue
            load = Workload(2, 8, 4) if self.smoke else measure.FAMILIES[model].load
            order = {"what": "family", "model": model, "load": astuple(load), "engine": self._family_engine(model)}
            yield from (("families", row) for row in self._measure(order))

    def _families(self) -> Sequence[str]:
        """Those asked for: all of them unless they are named."""
        if self.smoke:
            return ["demo"]
        wanted = self.asked.families is not None or "families" in (self.asked.only or [])
        return self.asked.families or list(measure.FAMILIES if wanted else ())

    def _family_engine(self, model: str) -> dict[str, Any]:
        engine = self._engine_of(model)
        if not self.smoke:
            del engine["max_model_len"]
            if measure.FAMILIES[model].kind == "generate":
                engine |= {"max_model_len": 4096, "max_num_seqs": 64, "max_num_batched_tokens": 4096}
        return engine

    def _workloads(
        self, figure: str, order: dict[str, Any], environment: dict[str, str] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Rows that are to have `figure`, for every model and workload that lacks it."""
        for model in self.models:
            chosen = {
                name: astuple(workload)
                for name, workload in self.workloads.items()
                if not self._done("rows", {"model": model, "workload": name}, figure)
            }
            if chosen:
                of_model = {"model": model, "workloads": chosen, "engine": self._engine_of(model)}
                yield from (("rows", row) for row in self._measure(order | of_model, environment))

    def _engine_of(self, model: str) -> dict[str, Any]:
        engine = self.engine | {"compilation_cache_dir": str(self.cache / model)}
        # Of a small model the whole card would be one huge cache, which takes long to clear and shows nothing.
        return engine | ({"gpu_memory_utilization": 0.6} if model == "qwen3-0.6b" else {})

    def _measure(self, order: dict[str, Any], environment: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows that a process of `measure` prints, as they come."""
        line = [sys.executable, "-m", "jaxllm.bench.measure", json.dumps(order | {"seed": self.asked.seed})]
        with subprocess.Popen(line, env=environment or self.environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for printed in process.stdout:
                yield from measure.rows_of([printed])
        if process.returncode:
            self.failures.append(f"{order['what']} of {order['model']} (status {process.returncode})")

    def _beside_offline(self, model: str, load: str, row: dict[str, Any]) -> dict[str, Any]:
        """The share of the same engine's offline throughput, for the load that has an offline twin."""
        twin = {"256 streams": "mixed256"}.get(load)
        for other in self.document["rows"]:
            if (other["model"], other["workload"]) == (model, twin) and "output_tokens_per_s" in other:
                return {"share_of_offline": row["output_tokens_per_s"] / other["output_tokens_per_s"]}
        return {}

    def _done(self, name: str, key: dict[str, Any], figure: str | None = None) -> bool:
        """Whether --resume leaves a row out, as it is there."""
        key = key | {"commit": self.origin.commit}
        return self.asked.resume and any(
            row.items() >= key.items() and (figure is None or figure in row) for row in self.document[name]
        )

    def _write(self, pieces: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        date = time.strftime("%Y-%m-%d")
        return results.merge(self.asked.json, self.origin, self.command, date, pieces)


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]


def _origin(environment: dict[str, str], commit: str | None) -> results.Origin:
    """Asks a process of its own for the device, as this one must not hold it."""
    program = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    versions = {"python": platform.python_version()} | _versions(PACKAGES)
    return results.Origin(done.stdout.strip().splitlines()[-1], _driver(), commit or _commit(), versions)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _driver() -> str:
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "none"


def _commit() -> str:
    def git(*line: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *line], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(ROOT), f":!{ROOT / 'results'}")
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        sys.exit("no git repository here to tell the commit of: give it with --commit")


def show(document: dict[str, Any]) -> str:
    """The document's figures as text."""
    lines = [f"{document['device']}, driver {document['driver']}, commit {document['commit'][:12]}, {document['date']}"]

    def table(title: str, name: str, columns: tuple[str, ...]) -> None:
        if document[name]:
            lines.append("")
            lines.append("  ".join([f"{title:32}", *(f"{column.replace('_', ' '):>24}" for column in columns)]))
        for row in document[name]:
            label = " ".join(str(row[key]) for key in results.LISTS[name])
            lines.append("  ".join([f"{label:32}", *(f"{_shown(row.get(column)):>24}" for column in columns)]))

    table("kernels", "kernels", ("agree", "seconds"))
    table("tokens", "tokens", ("agree", "requests", "same", "ties"))
    table("start", "startup", ("seconds", "vllm_seconds", "ratio_to_vllm", "first_token"))
    table("workload", "rows", (
        "seconds", "ratio_to_vllm", "ratio_to_floor", "kernels_per_step", "command_buffers_per_step",
        "host_ms_per_step", "device_ms_per_step",
    ))  # fmt: skip
    table("served", "serving", (
        "output_tokens_per_s", "vllm_output_tokens_per_s", "share_of_offline", "ttft_p50_ms", "gap_p99_ms",
        "gap_max_ms",
    ))  # fmt: skip
    table("block kind", "families", ("decode_tokens_per_s", "prompts_per_s", "step_ms", "floor_ms", "share_of_floor"))
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:,.3f}" if isinstance(value, float) else str(value)


def main() -> int:
    """Returns 0 when everything ran and every kernel agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--workloads", nargs="+", choices=tuple(WORKLOADS), default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--serving", action="store_true", help="also drive a server with streams (Llama 8B's shape)")
    parser.add_argument(
        "--families", nargs="*", choices=tuple(measure.FAMILIES), metavar="MODEL",
        help="also run a model of every block kind, or those named",
    )  # fmt: skip
    parser.add_argument(
        "--loads", nargs="+", choices=tuple(serving.LOADS), default=list(serving.LOADS), metavar="LOAD",
        help="serve these alone",
    )  # fmt: skip
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="serve over these alone")
    parser.add_argument("--kernels", nargs="+", metavar="OPERATION", help="check these; all by default")
    parser.add_argument("--only", nargs="+", choices=PIECES, help="these pieces alone")
    parser.add_argument("--resume", action="store_true", help="leave out what the document already has")
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 1) // 2)), help="checks at once")
    parser.add_argument("--cache", type=Path, help="where programs are kept for the next call; nowhere by default")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each workload; the best counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "h200.json", help="where the figures go")
    parser.add_argument("--commit", help="the commit, where there is no git repository to ask")
    parser.add_argument("--smoke", action="store_true", help="everything tiny, with the demo model, on a CPU")
    arguments = parser.parse_args()
    pieces = ["kernels", "tokens", "startup", "workloads", "profile"]
    pieces += ["serving"] * arguments.serving + ["families"] * (arguments.families is not None)
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(arguments, arguments.cache or Path(cache))
        bench.run([piece for piece in PIECES if piece in (arguments.only or pieces)])
    print(show(bench.document))
    for failure in bench.failures:
        print(f"FAILED: {failure}")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
