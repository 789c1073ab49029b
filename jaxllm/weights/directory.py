"""A checkpoint's directory and the JSON files in it."""

import json
from pathlib import Path
from typing import Any

from jaxllm.errors import ConfigError

DEMO = Path(__file__).parents[1] / "demo_model"


def resolve_model_path(model: str | Path) -> Path:
    """The directory that --model names: itself, or the packaged one for `demo`."""
    path = DEMO if str(model) == "demo" else Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ConfigError(f"model={str(model)!r} is a file: name the directory that holds it and its config.json")
    raise ConfigError(
        f"model={str(model)!r}: no such directory; name one that holds a Hugging Face checkpoint"
        " (fetch one with `hf download NAME --local-dir DIRECTORY`), one written by `jaxllm convert`, or demo"
    )


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of config.json. ConfigError where there is none or it is no JSON object."""
    directory = resolve_model_path(path)
    config = read_object(directory / "config.json")
    if config is None:
        raise ConfigError(f"{directory}: no config.json; is this the directory of a Hugging Face checkpoint?")
    return config


def read_generation_config(path: str | Path) -> dict[str, Any]:
    """The content of generation_config.json; empty where there is none."""
    return read_object(resolve_model_path(path) / "generation_config.json") or {}


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object that a file holds; None where there is no such file. ConfigError where it holds no object."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a JSON object, not {type(content).__name__}")
    return content
