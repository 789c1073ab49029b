"""Every family against what Hugging Face transformers computed in float32 (scripts/record_reference.py)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from paged import PAGE, Program, Sequences, draw_greedily

from jaxllm import weights
from jaxllm.models import registry

REFERENCE = Path(__file__).parent / "reference"
CASES = sorted(path.name for path in REFERENCE.iterdir())


def cases_with_tail() -> list[str]:
    """One for each make of a last layer that may leave out what is not read."""
    found = {}
    for name in CASES:
        model = registry.resolve(weights.read_config(REFERENCE / name)).build("float32")
        if model.heeds_tail:
            layer = model.layers[-1]
            found[type(layer), type(layer.attention), type(getattr(layer, "mlp", None))] = name
    return sorted(found.values())


@dataclass
class Reference:
    program: Program
    sequences: list[np.ndarray]
    logits: list[np.ndarray]
    greedy: np.ndarray


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Reference:
    folder = REFERENCE / request.param
    model = registry.resolve(weights.read_config(folder)).build("float32")
    with np.load(folder / "reference.npz") as recorded:
        borders = np.cumsum(recorded["lengths"])[:-1]
        return Reference(
            program=Program(weights.load(model, folder)),
            sequences=np.split(recorded["ids"], borders),
            logits=np.split(recorded["logits"], borders),
            greedy=recorded["greedy"],
        )


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_family_has_two_cases_and_every_name_one():
    named = [weights.read_config(REFERENCE / name)["architectures"][0] for name in CASES]
    assert set(named) == registry.MODELS.keys()
    classes = [registry.MODELS[name][1] for name in named]
    assert [model.__name__ for model in set(classes) if classes.count(model) < 2] == []


def test_full_forward(case):
    for actual, expected in zip(case.program.dense(case.sequences), case.logits, strict=True):
        assert_close(actual, expected)


def test_chunked_prefill(case):
    paged = Sequences(case.program)
    got = [[] for _ in case.sequences]
    sizes = [1, 3, 7, 9]  # each sequence in chunks of its own size, so that chunks end anywhere in a page
    while any(paged.length[row] < len(ids) for row, ids in enumerate(case.sequences)):
        chunks = {
            row: ids[paged.length[row] : paged.length[row] + sizes[row]]
            for row, ids in enumerate(case.sequences)
            if paged.length[row] < len(ids)
        }
        for row, logits in paged.extend(chunks).items():
            got[row].append(logits)
    for parts, expected in zip(got, case.logits, strict=True):
        assert_close(np.concatenate(parts), expected)


def test_decode_token_by_token(case):
    paged = Sequences(case.program)
    for position in range(max(map(len, case.sequences))):
        tokens = {row: int(ids[position]) for row, ids in enumerate(case.sequences) if position < len(ids)}
        for row, logits in paged.decode(tokens).items():
            assert_close(logits, case.logits[row][position])


def test_one_step_mixes_prefill_chunks_and_decodes(case):
    one, short, middle, long = case.sequences
    paged = Sequences(case.program)
    paged.extend({3: long[:15], 1: short[:5]})
    got = paged.extend({1: short[5:], 2: middle, 3: long[15:], 0: one})  # decode, prefill, last chunk, prefill
    assert_close(got[1], case.logits[1][5:])
    assert_close(got[2], case.logits[2])
    assert_close(got[3], case.logits[3][15:])
    assert_close(got[0], case.logits[0])


@pytest.mark.parametrize("case", cases_with_tail(), indirect=True)
def test_last_layer_for_the_last_tokens_alone(case):
    one, short, middle, long = case.sequences
    paged = Sequences(case.program)
    paged.extend({3: long[:15], 1: short[:-1]}, tail=True)
    got = paged.extend({1: short[-1:], 2: middle, 3: long[15:], 0: one}, tail=True)
    for row, logits in got.items():
        assert_close(logits, case.logits[row][-1])


def test_after_preemption(case):
    """Computed again from the start, in pages that hold another row's past."""
    paged = Sequences(case.program)
    for row, ids in enumerate(case.sequences):
        paged.extend({row: ids[: max(1, len(ids) // 2)]})
    paged.preempt()
    got = {row: [] for row in range(len(case.sequences))}
    for row, ids in enumerate(case.sequences):
        if len(ids) > 1:
            got[row] += list(paged.extend({row: ids[:-1]})[row])
    for row, logits in paged.decode({row: int(ids[-1]) for row, ids in enumerate(case.sequences)}).items():
        assert_close(np.stack([*got[row], logits]), case.logits[row])


def test_after_a_prefix_hit(case):
    """Rows that go on from pages which another computed, the last of them copied; nobody disturbs anybody."""
    long, ids, expected = 3, case.sequences[3], case.logits[3]
    paged = Sequences(case.program)
    hits = {0: PAGE, 1: PAGE + 3, 2: len(ids) - 2}
    for row, tokens in hits.items():
        # Pages serve any place in them, a recurrent state the one where it stands.
        upto = tokens if case.program.recurrent else len(ids) - 1
        if paged.length[long] < upto:
            paged.extend({long: ids[paged.length[long] : upto]})
        paged.share(long, row, tokens)
    for row, tokens in hits.items():
        assert_close(paged.extend({row: ids[tokens:]})[row], expected[tokens:])
    for place in range(paged.length[long], len(ids)):
        assert_close(paged.decode({long: int(ids[place])})[long], expected[place])


def test_greedy_continuation(case):
    paged = Sequences(case.program)
    last = {row: paged.extend({row: ids})[row][-1] for row, ids in enumerate(case.sequences)}
    drawn = draw_greedily(paged.decode, last, case.greedy.shape[1])
    assert [drawn[row] for row in range(len(case.sequences))] == case.greedy.tolist()


def test_greedy_continuation_beside_others_in_extend_steps(case):
    paged = Sequences(case.program)
    last = {row: logits[-1] for row, logits in paged.extend({2: case.sequences[2], 1: case.sequences[1]}).items()}

    def draw(tokens: dict[int, int]) -> dict[int, np.ndarray]:
        return {row: logits[0] for row, logits in paged.extend({row: [t] for row, t in tokens.items()}).items()}

    drawn = draw_greedily(draw, last, case.greedy.shape[1])
    assert [drawn[1], drawn[2]] == case.greedy[1:3].tolist()
