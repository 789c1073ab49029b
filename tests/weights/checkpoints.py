"""Shared by the loading tests: the reference checkpoints, and a model's arrays by name."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm import weights
from jaxllm.layers.parameter import parameters
from jaxllm.models import registry

REFERENCE = Path(__file__).parents[1] / "models" / "reference"
LLAMA = "llama-llama3-rope-biases"  # bfloat16, untied


def build(path, dtype="float32"):
    return registry.resolve(weights.read_config(path)).build(dtype)


def values(model) -> dict[str, jax.Array]:
    return {name: leaf.get_value() for name, leaf in parameters(model).items()}


def assert_same(left: dict[str, jax.Array], right: dict[str, jax.Array]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        np.testing.assert_array_equal(np.asarray(array), np.asarray(right[name]), err_msg=name)


def write_pooling(
    directory: Path, kinds: tuple[str, ...], pooling: dict[str, Any], sentence: dict[str, Any] | None = None
):
    library = "sentence_transformers.models."
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": library + kind}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if sentence is not None:
        (directory / "sentence_bert_config.json").write_text(json.dumps(sentence))
