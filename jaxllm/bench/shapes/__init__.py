"""Model shapes without weights, one directory with a config.json each, for `--load-format dummy`."""

from pathlib import Path

DIRECTORY = Path(__file__).parent


def shape_names() -> list[str]:
    return sorted(path.parent.name for path in DIRECTORY.glob("*/config.json"))


def model_directory(name: str) -> str:
    """The directory of a bundled shape if `name` is one and nothing of that name exists here; else `name`."""
    return str(DIRECTORY / name) if name in shape_names() and not Path(name).exists() else name
