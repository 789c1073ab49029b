"""One document of what was measured on one device, filled in pieces; each row with its date and commit."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTS = {
    "kernels": ("only",),
    "tokens": ("model", "dtype"),
    "programs": ("model",),
    "startup": ("model", "start"),
    "rows": ("model", "workload"),
    "serving": ("protocol", "load"),
    "families": ("model",),
}
"""The document's lists, and what tells the rows of each apart."""


@dataclass(frozen=True)
class Origin:
    """Where figures come from. versions: of the packages that decide them."""

    device: str
    driver: str
    commit: str
    versions: dict[str, str]


def merge(path: Path, origin: Origin, command: str, date: str, pieces: dict[str, list[dict[str, Any]]]) -> dict:
    """Adds rows to the document at `path` and returns it; figures of the same row are replaced, others stay.

    A row that one commit has added to (figures and what the profiler counts, say) and another adds to starts anew. A
    document of another device or other versions is set aside under a name with its commit, as its figures and these
    do not belong together. The document's own commit is that of its newest rows; its command says of each commit that
    has rows in it which commands made them.
    """
    document = _read(path)
    same = {"device": origin.device, "driver": origin.driver, "versions": origin.versions}
    if document and {name: document.get(name) for name in same} != same:
        path.rename(path.with_name(f"{path.stem}.{str(document.get('commit', 'unknown'))[:12]}{path.suffix}"))
        document = {}
    commands: dict[str, list[str]] = document.get("command", {})
    lists: dict[str, list[dict[str, Any]]] = {name: document.get(name, []) for name in LISTS}
    for name, rows in pieces.items():
        for row in rows:
            _put(lists[name], row | {"commit": origin.commit, "date": date}, LISTS[name])
    commands[origin.commit] = list(dict.fromkeys([*commands.get(origin.commit, []), command]))
    left = {row["commit"] for rows in lists.values() for row in rows} | {origin.commit}
    document = same | {
        "commit": origin.commit,
        "date": date,
        "command": {commit: made for commit, made in commands.items() if commit in left},
        **lists,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return document


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _put(rows: list[dict[str, Any]], row: dict[str, Any], names: tuple[str, ...]) -> None:
    for i, old in enumerate(rows):
        if all(old.get(name) == row.get(name) for name in names):
            rows[i] = (old if old["commit"] == row["commit"] else {}) | row
            return
    rows.append(row)
