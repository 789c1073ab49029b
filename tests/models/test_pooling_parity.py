"""Every family that generates nothing against what transformers computed in float32 (scripts/record_reference.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxllm import weights
from jaxllm.layers.step import EncodeStep
from jaxllm.models import registry

REFERENCE = Path(__file__).parent / "reference_pooling"
CASES = sorted(path.name for path in REFERENCE.iterdir())
TOKENS, ROWS = 56, 6


class Program:
    """A model over one bucket: hidden states, what the head makes of each, and of each sequence."""

    def __init__(self, model: Any):
        graphdef, self._state = nnx.split(model)
        self.pooling = model.config.pooling

        def run(state: Any, ids: jax.Array, types: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
            model = nnx.merge(graphdef, state)
            step = EncodeStep.of(ids, count, types if model.config.type_vocab_size else None)
            hidden = model.encode(step)
            pooled = model.outputs(hidden) if self.pooling.sequence is None else model.pooled(hidden, step)
            return hidden, model.outputs(hidden), pooled

        # Compiling is most of these tests' time.
        self._run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})

    def __call__(self, ids: list[np.ndarray], types: list[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
        """hidden [length, E], outputs [length, D] and, where sequences have one, pooled [D] of each sequence.

        Padding tokens are any tokens, empty rows stand behind the others.
        """
        rng = np.random.default_rng(len(ids))
        packed, packed_types = rng.integers(0, 90, TOKENS, np.int32), np.zeros(TOKENS, np.int32)
        count = np.zeros(ROWS, np.int32)
        count[: len(ids)] = [len(row) for row in ids]
        packed[: count.sum()], packed_types[: count.sum()] = np.concatenate(ids), np.concatenate(types)
        hidden, outputs, pooled = (np.asarray(x) for x in self._run(self._state, packed, packed_types, count))
        borders = np.cumsum(count)
        rows = []
        for row, end in enumerate(borders[: len(ids)]):
            own = slice(end - count[row], end)
            rows.append((hidden[own], outputs[own], pooled[row]))
        return rows


@dataclass
class Reference:
    program: Program
    ids: list[np.ndarray]
    types: list[np.ndarray]
    hidden: list[np.ndarray]
    outputs: list[np.ndarray] | None


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Reference:
    folder = REFERENCE / request.param
    model = registry.resolve(weights.read_config(folder)).build("float32")
    with np.load(folder / "reference.npz") as recorded:
        borders = np.cumsum(recorded["lengths"])[:-1]
        ids, types, hidden = (np.split(recorded[name], borders) for name in ("ids", "types", "hidden"))
        outputs = None
        if "outputs" in recorded:
            of_tokens = len(recorded["outputs"]) == sum(recorded["lengths"])
            outputs = np.split(recorded["outputs"], borders) if of_tokens else list(recorded["outputs"])
    return Reference(Program(weights.load(model, folder)), ids, types, hidden, outputs)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def check(case: Reference, which: list[int]) -> None:
    """The sequences of these numbers, together, in this order."""
    rows = case.program([case.ids[i] for i in which], [case.types[i] for i in which])
    sequence = case.program.pooling.sequence
    for i, (hidden, outputs, pooled) in zip(which, rows, strict=True):
        assert_close(hidden, case.hidden[i])
        if case.outputs is None:  # an embedding
            assert_close(outputs, case.hidden[i])
            of = {"cls": case.hidden[i][0], "last": case.hidden[i][-1], "mean": case.hidden[i].mean(axis=0)}
            assert_close(pooled, of[sequence])
        elif case.outputs[i].ndim == 2:  # of each token
            assert_close(outputs, case.outputs[i])
            if sequence is not None:
                assert sequence == "last"
                assert_close(pooled, case.outputs[i][-1])
        else:
            assert_close(pooled, case.outputs[i])


def test_every_class_has_two_cases_and_every_name_one():
    named = [weights.read_config(REFERENCE / name)["architectures"][0] for name in CASES]
    assert set(named) == registry.POOLING_MODELS.keys()
    classes = [registry.POOLING_MODELS[name][1] for name in named]
    assert [model.__name__ for model in set(classes) if classes.count(model) < 2] == []


def test_ragged_batch(case):
    check(case, [0, 1, 2, 3])


def test_other_neighbours(case):
    check(case, [3, 1, 3])


def test_alone(case):
    for i in range(len(case.ids)):
        check(case, [i])
