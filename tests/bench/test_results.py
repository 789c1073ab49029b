"""Figures of one device gather in one document, each with its commit; those of another are set aside."""

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
    at = {"commit": HERE.commit, "date": "2026-11-25"}
    assert document["rows"] == [
        {"model": "m", "workload": "single", "seconds": 1.0, "kernels_per_step": 9} | at,
        {"model": "m", "workload": "long", "seconds": 3.0} | at | {"date": "2026-11-24"},
    ]
    assert document["command"] == {HERE.commit: ["bench --only workloads", "bench --only profile"]}
    assert (document["device"], document["commit"], document["date"]) == ("NVIDIA H200", "a" * 40, "2026-11-25")
    assert document["serving"] == document["startup"] == []
    assert [file.name for file in path.parent.iterdir()] == ["h200.json"]


def test_rows_of_commits_stand_side_by_side_and_do_not_mix(tmp_path: Path):
    path = tmp_path / "h200.json"
    cold, warm = ({"model": "m", "start": start, "seconds": 30.0, "imports": 2.0} for start in ("cold", "warm"))
    merge(path, HERE, "bench", "2026-11-23", {"startup": [cold, warm]})
    later = Origin(HERE.device, HERE.driver, "b" * 40, HERE.versions)
    again = {"model": "m", "start": "warm", "seconds": 8.0}
    new = merge(path, later, "bench --only startup", "2026-11-24", {"startup": [again]})
    assert new["startup"] == [
        cold | {"commit": HERE.commit, "date": "2026-11-23"},
        again | {"commit": later.commit, "date": "2026-11-24"},
    ]
    assert new["commit"] == later.commit
    assert new["command"] == {HERE.commit: ["bench"], later.commit: ["bench --only startup"]}
    assert merge(path, later, "bench", "2026-11-25", {"startup": [cold]})["command"] == {
        later.commit: ["bench --only startup", "bench"]
    }


def test_another_device_begins_anew(tmp_path: Path):
    path = tmp_path / "h200.json"
    old = merge(path, HERE, "bench", "2026-11-23", {"startup": [{"model": "m", "start": "cold", "seconds": 30.0}]})
    new = merge(path, Origin("NVIDIA H100", HERE.driver, "b" * 40, HERE.versions), "bench", "2026-11-24", {})
    assert new["startup"] == []
    assert json.loads((tmp_path / f"h200.{'a' * 12}.json").read_text()) == old
