"""Real servers for real clients."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from calling_server import TEMPLATE
from processes import SMALL, Server, serving


@pytest.fixture(scope="session")
def stories(material: Path) -> Path:
    """A trained Llama of 260 thousand parameters."""
    return material / "derived/stories260K-hf"


@pytest.fixture(scope="session")
def server(stories: Path) -> Iterator[Server]:
    with serving("--model", stories, "--http-port", "0", "--served-model-name", "stories") as server:
        yield server


@pytest.fixture(scope="session")
def calling_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "template.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="session")
def calling_server(stories: Path, calling_template: Path) -> Iterator[Server]:
    """A model that reasons, says a sentence and calls two tools."""
    command = (sys.executable, Path(__file__).with_name("calling_server.py"), stories)
    with serving("--chat-template", calling_template, "--http-port", "0", *SMALL, command=command) as server:
        yield server
