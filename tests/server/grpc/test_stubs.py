"""The committed stubs are those of the protocol as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STUBS = ROOT / "jaxllm/server/grpc/stubs"


def test_stubs_are_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools (extra `dev`) generates the stubs")
    subprocess.run(
        ["bash", "scripts/generate_stubs.sh", str(tmp_path)],
        check=True, cwd=ROOT, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    names = {path.name for path in STUBS.iterdir() if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_text() == (STUBS / name).read_text(), f"{name}: run scripts/generate_stubs.sh"
