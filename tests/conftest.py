"""Shared by every test: JAX on the CPU, strict about dtypes and ranks; where the test material lies."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

MATERIAL = Path(os.environ.get("JAXLLM_TEST_MATERIAL", Path(__file__).parents[2] / "shared" / "material"))


@pytest.fixture(scope="session")
def material() -> Path:
    """The folder of real models, configs and tokenizers that tests read and nothing commits."""
    if not MATERIAL.is_dir():
        pytest.skip(f"no test material at {MATERIAL}; set JAXLLM_TEST_MATERIAL to its folder")
    return MATERIAL
