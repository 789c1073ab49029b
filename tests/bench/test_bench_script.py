"""scripts/bench_h200.py from end to end, tiny and on the CPU: what it measures, writes, and leaves out on --resume."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from jaxllm.bench import peers, serving
from jaxllm.bench.measure import FAMILIES, rows_of
from jaxllm.bench.shapes import shape_names
from jaxllm.bench.workloads import WORKLOADS

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_h200.py"


def bench(path: Path, *line: str) -> tuple[str, dict]:
    """What the script printed and wrote."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    command = [sys.executable, str(SCRIPT), "--smoke", "--commit", "c" * 40, "--json", str(path), *line]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, check=False,
        env=environment | {"JAXLLM_COMPILATION_CACHE_DIR": str(path.parent / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, json.loads(path.read_text())


def test_pieces_fill_one_document(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    pieces = ("tokens", "workloads", "families")
    _, document = bench(path, "--only", *pieces, "--workloads", "batch8", "prefill", "--repeats", "1")
    assert (document["device"], document["driver"], document["commit"]) == ("cpu", "none", "c" * 40)
    assert document["versions"]["jax"]
    rows = {row["workload"]: row for row in document["rows"]}
    assert rows.keys() == {"batch8", "prefill"}
    assert (rows["batch8"]["output_tokens"], rows["prefill"]["output_tokens"]) == (12, 2)
    assert rows["batch8"]["steps"] >= 6
    for row in rows.values():
        assert row["seconds"] > 0 < row["host_ms_per_step"]
        assert row["device_ms_per_step"] > 0
    (tokens,) = document["tokens"]
    assert (tokens["dtype"], tokens["requests"], tokens["same"], tokens["agree"]) == ("float32", 16, 16, True)
    assert tokens["output_tokens"] == 16 * 8
    (family,) = document["families"]
    assert family["backends"]["paged_attention"] == ["reference"], "on a CPU"
    assert family["share_of_floor"] > 0
    assert family["rows_per_step"] == pytest.approx(2)
    assert family["decode_tokens_per_s"] == pytest.approx(family["rows_per_step"] * 1000 / family["step_ms"])

    printed, resumed = bench(path, "--only", "workloads", "serving", "--workloads", "batch8", "--resume")
    assert resumed["rows"] == document["rows"]
    assert len(resumed["command"]["c" * 40]) == 2
    served = {(row["protocol"], row["load"]): row for row in resumed["serving"]}
    assert len(served) == len(resumed["serving"]) == 4
    assert all(row["packages"]["grpcio"] for row in served.values())
    for (_, load), row in served.items():
        assert row["output_tokens"] == row["num_requests"] * row["num_output"]
        assert 0 <= row["gap_p50_ms"] <= row["gap_p99_ms"] <= row["gap_max_ms"]
        assert ("long_ttft_ms" in row) == ("long prompt" in load)
        assert "vllm_gap_p99_ms" not in row  # whose load was another
    assert "workload" in printed
    assert "served" in printed


def test_peers_are_those_of_the_fixed_loads() -> None:
    assert peers.VLLM_SECONDS.keys() == peers.FLOOR_SECONDS.keys() <= set(shape_names())
    for table in (peers.VLLM_SECONDS, peers.FLOOR_SECONDS):
        assert all(row.keys() == WORKLOADS.keys() for row in table.values())
    assert peers.VLLM_SERVING.keys() == serving.LOADS.keys()
    assert set(FAMILIES) <= set(shape_names())
    row = peers.beside("llama-8b", "single", 1.0)
    assert row["ratio_to_vllm"] == pytest.approx(1 / 1.267)
    assert row["ratio_to_floor"] == pytest.approx(1 / 0.9)
    assert peers.beside("another", "single", 1.0) == {}


def test_every_id_of_the_tokenizer_for_shapes_is_a_word(tmp_path: Path) -> None:
    shape = tmp_path / "shape"
    shape.mkdir()
    (shape / "config.json").write_text(json.dumps({"vocab_size": 300}))
    made = serving.with_tokenizer(shape, tmp_path)
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert tokenizer.decode([0, 299, 7], skip_special_tokens=True) == " w0 w299 w7"
    assert json.loads((made / "config.json").read_text()) == {"vocab_size": 300}


def test_rows_are_read_from_between_other_lines() -> None:
    assert rows_of(["compiling", 'row {"model": "m", "seconds": 1.5}\n', "done"]) == [{"model": "m", "seconds": 1.5}]


def test_each_model_has_its_own_engine_and_workloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    bench = object.__new__(script["Bench"])
    bench.models, bench.workloads, bench.asked = ["llama-8b", "qwen3-0.6b"], WORKLOADS, None
    bench.engine, bench.cache = {"load_format": "dummy"}, tmp_path
    bench._done = lambda name, key, figure: key == {"model": "llama-8b", "workload": "single"}
    orders: list[dict] = []
    bench._measure = lambda order, environment: orders.append(order) or []
    assert list(bench._workloads("seconds", {"what": "workloads"})) == []
    first, second = orders
    assert (first["model"], second["model"]) == ("llama-8b", "qwen3-0.6b")
    assert set(second["workloads"]) - set(first["workloads"]) == {"single"}
    assert first["engine"]["compilation_cache_dir"] != second["engine"]["compilation_cache_dir"]
    assert "gpu_memory_utilization" in second["engine"].keys() - first["engine"].keys()
