"""Figures of one commit and device gather in one document; others are set aside."""

import json
from pathlib import Path

from jaxllm.bench.results import Origin, merge

HERE = Origin("NVIDIA H200", "580.1", "a" * 40, {"jax": "0.11.2"})


def test_pieces_gather_row_by_row(tmp_path: Path):
    path = tmp_path / "results" / "h200.json"
    merge(
        path,
        HERE,
        "bench --only workloads",
        "2026-11-23",
        {"rows": [{"model": "m", "workload": "single", "seconds": 2.0}]},
    )
    merge(
        path,
        HERE,
        "bench --only profile",
        "2026-11-24",
        {"rows": [{"model": "m", "workload": "single", "kernels_per_step": 9}]},
    )
    merge(
        path,
        HERE,
        "bench --only workloads",
        "2026-11-24",
        {"rows": [{"model": "m", "workload": "long", "seconds": 3.0}]},
    )
    document = merge(
        path,
        HERE,
        "bench --only workloads",
        "2026-11-25",
        {"rows": [{"model": "m", "workload": "single", "seconds": 1.0}]},
    )
    assert document == json.loads(path.read_text())
    assert document["rows"] == [
        {"model": "m", "workload": "single", "seconds": 1.0, "kernels_per_step": 9},
        {"model": "m", "workload": "long", "seconds": 3.0},
    ]
    assert document["command"] == "bench --only workloads && bench --only profile"
    assert (document["device"], document["commit"], document["date"]) == ("NVIDIA H200", "a" * 40, "2026-11-25")
    assert document["serving"] == document["startup"] == []
    assert [file.name for file in path.parent.iterdir()] == ["h200.json"]


def test_another_commit_begins_anew(tmp_path: Path):
    path = tmp_path / "h200.json"
    row = {"model": "m", "start": "cold", "seconds": 30.0}
    old = merge(path, HERE, "bench", "2026-11-23", {"startup": [row]})
    later = Origin(HERE.device, HERE.driver, "b" * 40, HERE.versions)
    new = merge(path, later, "bench", "2026-11-24", {})
    assert new["startup"] == []
    assert json.loads((tmp_path / f"h200.{'a' * 12}.json").read_text()) == old
