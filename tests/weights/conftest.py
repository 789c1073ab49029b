"""A checkpoint that a test may break."""

import shutil
from pathlib import Path

import pytest
from checkpoints import LLAMA, REFERENCE
from safetensors.numpy import load_file, save_file


@pytest.fixture
def checkpoint(tmp_path):
    """A writable copy: its directory, its tensors, and a function that writes them back."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(REFERENCE / LLAMA, directory)
    tensors = load_file(directory / "model.safetensors")

    def write() -> Path:
        save_file(tensors, directory / "model.safetensors")
        return directory

    return directory, tensors, write
