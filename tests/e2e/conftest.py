"""Real servers for real clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Server, serving


@pytest.fixture(scope="session")
def stories(material: Path) -> Path:
    """A trained Llama of 260 thousand parameters."""
    return material / "derived/stories260K-hf"


@pytest.fixture(scope="session")
def server(stories: Path) -> Iterator[Server]:
    with serving("--model", stories, "--http-port", "0", "--served-model-name", "stories") as server:
        yield server
