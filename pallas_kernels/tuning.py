"""Kernel configurations: measured ones per device from an operation's tuning folder, else the kernel's own defaults.

A file `<operation>/tuning/<device>.json` (NVIDIA_H200.json) holds a list of entries
{"kernel": name, "when": {fact: value, ...}, "config": {...}}; the first whose facts all hold overrides the defaults.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax

_trying: ContextVar[Mapping[str, Mapping[str, int]]] = ContextVar("pallas_kernels_trying", default={})  # noqa: B039


@contextmanager
def trying(kernel: str, **config: int) -> Iterator[None]:
    """Overrides a kernel's configuration for the calls traced inside, to measure it."""
    token = _trying.set({**_trying.get(), kernel: config})
    try:
        yield
    finally:
        _trying.reset(token)


def config(operation: str, kernel: str, defaults: Mapping[str, int], **facts: int) -> dict[str, int]:
    """The configuration of a kernel for the facts of a call (head_dim, bytes per element, ...)."""
    measured: Mapping[str, int] = {}
    for entry in _table(operation, jax.devices()[0].device_kind):
        if entry["kernel"] == kernel and all(facts.get(name) == value for name, value in entry["when"].items()):
            measured = entry["config"]
            break
    return {**defaults, **measured, **_trying.get().get(kernel, {})}


@functools.cache
def _table(operation: str, device_kind: str) -> list[dict[str, Any]]:
    path = table_path(operation, device_kind)
    table: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return table


def table_path(operation: str, device_kind: str) -> Path:
    """Where the configurations measured on a device are kept."""
    return Path(__file__).parent / operation / "tuning" / f"{re.sub(r'[^A-Za-z0-9]+', '_', device_kind)}.json"


def write(operation: str, device_kind: str, kernel: str, when: Mapping[str, int], config: Mapping[str, int]) -> None:
    """Enters a measured configuration; of one for the same facts stays what it does not name."""
    path = table_path(operation, device_kind)
    entry: dict[str, Any] = {"kernel": kernel, "when": dict(when), "config": {}}
    others = []
    for old in _table(operation, device_kind):
        if (old["kernel"], old["when"]) == (kernel, entry["when"]):
            entry["config"] |= old["config"]
        else:
            others.append(old)
    entry["config"] |= config
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(e)}" for e in [*others, entry]) + "\n]\n")
    _table.cache_clear()
