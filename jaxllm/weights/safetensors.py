"""Reads safetensors checkpoints, single or sharded, tensor by tensor; refuses pickles."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxllm.errors import CheckpointError

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types that weights may have in the file."""


class Tensors:
    """The tensors of a checkpoint directory by name. Files are mapped into memory and read when asked."""

    def __init__(self, directory: Path):
        self._files: dict[str, Any] = {}  # tensor -> open file
        self._paths: dict[str, Path] = {}  # tensor -> its file's path
        for path in find_files(directory):
            with _readable(path):
                file = safe_open(path, framework="numpy")
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    self._files[name] = file
                    self._paths[name] = path

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def describe(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape, and type as the format names it (F32, BF16, ...)."""
        view = self._files[name].get_slice(name)
        return tuple(view.get_shape()), view.get_dtype()

    def read(self, name: str) -> np.ndarray:
        with _readable(self._paths[name]):
            tensor: np.ndarray = self._files[name].get_tensor(name)
        return tensor

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """The tensor's rows from `first` to before `last`."""
        with _readable(self._paths[name]):
            part: np.ndarray = self._files[name].get_slice(name)[first:last]
        return part


def find_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the checkpoint. CheckpointError where there is none or a shard is missing."""
    index = directory / INDEX
    if index.is_file():
        try:
            shards = sorted({str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index of shards ({error!r}); fetch the file again") from error
        absent = [name for name in shards if not (directory / name).is_file()]
        if absent:
            raise CheckpointError(f"{directory}: {INDEX} names files that are not there: {', '.join(absent)}")
        return [directory / name for name in shards]
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    # Mistral's repositories hold the same weights a second time, under other names, as consolidated*.safetensors.
    files = sorted(path for path in directory.glob("*.safetensors") if not path.name.startswith("consolidated"))
    if files:
        return files
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory}: holds pickle files only ({', '.join(pickles)}). Loading a pickle runs whatever code it"
            " contains, so they are refused: fetch the checkpoint's safetensors, or convert it where you trust it, with"
            " transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(DIRECTORY)"
        )
    raise CheckpointError(
        f"{directory}: no *.safetensors file; fetch the weights, or pass --load-format dummy for random ones"
    )


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or damaged: {error}; fetch the file again"
        ) from error
