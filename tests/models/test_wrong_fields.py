"""A wrong value in any field of a config.json is a ConfigError or harmless: never an exception of Python's.

Harmless: the configuration is read, and its rotations are numbers.
"""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm.errors import ConfigError
from jaxllm.models import registry

FAMILIES = ("reference", "reference_encoder_decoder", "reference_pooling")
RECORDED = sorted(path for family in FAMILIES for path in Path(__file__).with_name(family).glob("*/config.json"))
WRONG: list[Any] = [None, True, 0, -1, 7, 1.5, 2**40, math.nan, math.inf, "x", [], [[1]], {}, {"a": 1}]


def with_one_wrong(recorded: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field with every value; lists and dictionaries also with one inside."""
    for name, value in recorded.items():
        for wrong in WRONG:
            yield name, wrong
            if isinstance(value, list):
                yield name, [wrong] * len(value)
            if isinstance(value, dict):
                for inner in value:
                    yield name, value | {inner: wrong}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_wrong_values_are_told_of(path: Path) -> None:
    recorded = json.loads(path.read_text())
    told = 0
    for name, wrong in with_one_wrong(recorded):
        try:
            config = registry.resolve(copy.deepcopy(recorded | {name: wrong}), None, "auto").config
            for rope in {config.rope, *(config.layer_ropes or ())} - {None}:
                assert np.isfinite(rope.frequencies()).all()
        except ConfigError:
            told += 1
        except Exception as error:
            raise AssertionError(f"{name}={wrong!r}") from error
    assert told > len(recorded)
