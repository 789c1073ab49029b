"""Encoder-decoders against what Hugging Face transformers computed in float32 (scripts/record_reference.py)."""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from paged import Program, Sequences, draw_greedily
from safetensors.numpy import load_file, save_file

from jaxllm import weights
from jaxllm.models import registry
from jaxllm.models.t5 import buckets_of

FIRST_OF_BUCKET = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
FIRST_OF_HALF = [*range(9), 12, 16, 23, 32, 46, 64, 91]
"""The first distance of each of T5's 32 buckets, and of each side's 16, as transformers computes them."""

REFERENCE = Path(__file__).parent / "reference_encoder_decoder"
CASES = sorted(path.name for path in REFERENCE.iterdir())


@dataclass
class Reference:
    program: Program
    sources: list[np.ndarray]
    sequences: list[np.ndarray]
    logits: list[np.ndarray]
    greedy: np.ndarray

    def read(self) -> Sequences:
        """Sequences whose sources are encoded, not all at once and not in their order."""
        paged = Sequences(self.program)
        paged.encode({2: self.sources[2], 0: self.sources[0]})
        paged.encode({1: self.sources[1], 3: self.sources[3]})
        return paged


def load(case: str, folder: Path | None = None) -> Program:
    folder = folder or REFERENCE / case
    return Program(weights.load(registry.resolve(weights.read_config(folder)).build("float32"), folder))


def recorded(case: str) -> dict[str, list[np.ndarray]]:
    with np.load(REFERENCE / case / "reference.npz") as values:
        borders, source_borders = (np.cumsum(values[name])[:-1] for name in ("lengths", "source_lengths"))
        return {
            "sequences": np.split(values["ids"], borders),
            "logits": np.split(values["logits"], borders),
            "sources": np.split(values["source_ids"], source_borders),
            "greedy": values["greedy"],
        }


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Reference:
    return Reference(load(request.param), **recorded(request.param))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_every_family_has_two_cases_and_every_name_one():
    named = [weights.read_config(REFERENCE / name)["architectures"][0] for name in CASES]
    assert set(named) == registry.ENCODER_DECODERS.keys()
    classes = [registry.ENCODER_DECODERS[name][1] for name in named]
    assert [model.__name__ for model in set(classes) if classes.count(model) < 2] == []


def test_dense(case):
    for actual, expected in zip(case.program.dense(case.sequences, case.sources), case.logits, strict=True):
        assert_close(actual, expected)


def test_ragged_and_chunked_decoder_prompts(case):
    """Sources that were encoded in ragged steps; chunks that end anywhere in a page; a step that mixes all."""
    one, short, middle, long = case.sequences
    paged = case.read()
    first = paged.extend({3: long[:13], 1: short[:5]})
    got = paged.extend({1: short[5:], 2: middle[:9], 0: one})
    last = paged.extend({2: middle[9:], 3: long[13:]})
    assert_close(got[0], case.logits[0])
    assert_close(np.concatenate([first[1], got[1]]), case.logits[1])
    assert_close(np.concatenate([got[2], last[2]]), case.logits[2])
    assert_close(np.concatenate([first[3], last[3]]), case.logits[3])


def test_decode_token_by_token(case):
    paged = case.read()
    for position in range(max(map(len, case.sequences))):
        tokens = {row: int(ids[position]) for row, ids in enumerate(case.sequences) if position < len(ids)}
        for row, logits in paged.decode(tokens).items():
            assert_close(logits, case.logits[row][position])


def test_after_preemption(case):
    """Sources encoded again, decoder prompts computed again, in pages that hold another row's past."""
    paged = case.read()
    for row, ids in enumerate(case.sequences):
        paged.extend({row: ids[: max(1, len(ids) // 2)]})
    paged.preempt()
    paged.encode(dict(enumerate(case.sources)))
    got = {row: [] for row in range(len(case.sequences))}
    for row, ids in enumerate(case.sequences):
        if len(ids) > 1:
            got[row] += list(paged.extend({row: ids[:-1]})[row])
    for row, logits in paged.decode({row: int(ids[-1]) for row, ids in enumerate(case.sequences)}).items():
        assert_close(np.stack([*got[row], logits]), case.logits[row])


def test_greedy_continuation(case):
    paged = case.read()
    last = {row: paged.extend({row: ids})[row][-1] for row, ids in enumerate(case.sequences)}
    drawn = draw_greedily(paged.decode, last, case.greedy.shape[1])
    assert [drawn[row] for row in range(len(case.sequences))] == case.greedy.tolist()


def test_distances_fall_into_the_buckets_of_the_reference_implementation():
    behind = buckets_of(32, 128, to_both_sides=False)
    assert [behind.index(bucket) for bucket in range(32)] == FIRST_OF_BUCKET
    both = np.asarray(buckets_of(32, 128, to_both_sides=True))
    assert len(both) == 257
    before, after = both[:129][::-1], both[128:]
    assert before[0] == after[0] == 0
    assert (after[1:] == before[1:] + 16).all()
    assert [before.tolist().index(bucket) for bucket in range(16)] == FIRST_OF_HALF


def test_a_bart_saved_without_its_head_has_no_logits_bias(tmp_path):
    case = "bart-scaled"
    tensors = load_file(REFERENCE / case / "model.safetensors")
    bias = tensors.pop("final_logits_bias").astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((REFERENCE / case / "config.json").read_text())
    reference = recorded(case)
    actual = load(case, tmp_path).dense(reference["sequences"][:1], reference["sources"][:1])
    assert_close(actual[0] + bias, reference["logits"][0])


def test_marian_draws_no_padding() -> None:
    """Whose logit is 0 in its checkpoints, over most words'; the logits that were recorded have it."""
    model = registry.resolve(weights.read_config(REFERENCE / "marian-uneven")).build("float32")
    start = model.config.decoder_start_token_id
    logits = jnp.zeros((3, model.config.vocab_size), jnp.float32)
    drawable = np.asarray(model.drawable(logits))
    assert np.isneginf(drawable[:, start]).all()
    assert np.isfinite(np.delete(drawable, start, 1)).all()
