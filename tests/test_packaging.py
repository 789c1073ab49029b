"""What `pip install .` puts on a machine: the wheel's files and its metadata."""

import email
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import jaxllm

ROOT = Path(__file__).parents[1]
PACKAGES = ("jaxllm", "pallas_kernels")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy of the sources, without the network."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = target.glob("*.whl")
    assert path.name == f"jaxllm-{jaxllm.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path)


def data_files() -> set[str]:
    """Everything in the packages that is not Python's own leavings."""
    paths = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == data_files()
    for name in (
        "jaxllm/py.typed",
        "pallas_kernels/py.typed",
        "jaxllm/server/grpc/stubs/jaxllm_pb2.py",
        "jaxllm/server/grpc/stubs/jaxllm_pb2_grpc.py",
        "jaxllm/bench/shapes/llama-8b/config.json",
        "jaxllm/demo_model/config.json",
        "jaxllm/demo_model/model.safetensors",
        "jaxllm/demo_model/tokenizer.json",
    ):
        assert name in held


def test_the_demo_model_stays_small(wheel):
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sum(size for name, size in sizes.items() if "/demo_model/" in name) <= 8_000_000


def test_metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == jaxllm.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.12"
    assert set(metadata.get_all("Provides-Extra")) == {"cuda12", "cuda13", "dev", "otel", "plot", "test"}
    assert not any("torch" in requirement for requirement in metadata.get_all("Requires-Dist"))
    assert len(metadata.get_all("Requires-Dist")) >= len(project["dependencies"])
    (entry,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "jaxllm = jaxllm.cli:main" in wheel.read(entry).decode()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
