"""What sampling_threshold leaves alone, and rows that a program must get through, whatever comes out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import choose
from pallas_kernels.sampling_threshold import sampling_threshold

BACKENDS = ("reference", "triton")


def rows(logits: np.ndarray, *filters: tuple[int, float, float]) -> list[jax.Array]:
    """Operands."""
    top_k, top_p, min_p = zip(*filters, strict=True)
    ones = jnp.ones(len(filters), jnp.float32)
    parameters = [ones, jnp.asarray(top_k, jnp.int32), jnp.asarray(top_p, jnp.float32), jnp.asarray(min_p, jnp.float32)]
    return [jnp.asarray(logits, jnp.float32), *parameters]


def kept_by(backend: str, operands: list[jax.Array]) -> np.ndarray:
    """The tokens that may be drawn, [B, V] bool."""
    logits = np.asarray(operands[0])
    with choose.using(backend):
        lowest = np.asarray(sampling_threshold(*operands))
    return (logits >= lowest[:, None]) & (logits > -np.inf)


@pytest.mark.parametrize("vocabulary", [40, 17000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_filters(backend: str, vocabulary: int, interpreter: None) -> None:
    logits = np.full((3, vocabulary), np.nan)
    with choose.using(backend):
        found = sampling_threshold(*rows(logits, (0, 1.0, 0.0), (vocabulary, 1.0, 0.0), (vocabulary + 1, 1.0, 0.0)))
    assert found.tolist() == [-np.inf] * 3


@pytest.mark.parametrize("vocabulary", [40, 17000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_rows_are_not_filtered(backend: str, vocabulary: int, interpreter: None) -> None:
    logits, _, *filters = rows(np.zeros((2, vocabulary)), (5, 0.9, 0.1), (0, 0.5, 0.0))
    with choose.using(backend):
        found = sampling_threshold(logits, jnp.asarray([0.0, 1e-6], jnp.float32), *filters)
    assert found.tolist() == [-np.inf] * 2


@pytest.mark.parametrize("shape", ["normal", "gumbel", "flat", "peaked"])
def test_a_sample_tells_where_the_threshold_is(shape: str, interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not, the whole row is searched, which takes many times as long and finds the same."""
    import jax_triton

    rng, size = np.random.default_rng(len(shape)), (6, 40000)
    logits = {
        "normal": 3 * rng.normal(size=size), "gumbel": rng.gumbel(size=size), "flat": 0.01 * rng.normal(size=size),
        "peaked": 10 * rng.normal(size=size),
    }[shape]  # fmt: skip
    yielded: dict[str, Any] = {}
    call = jax_triton.triton_call

    def record(*args: Any, name: str, **options: Any) -> Any:
        yielded[name] = call(*args, name=name, **options)
        return yielded[name]

    monkeypatch.setattr(jax_triton, "triton_call", record)
    with choose.using("triton"):
        found = np.asarray(sampling_threshold(*rows(logits, *[(50, 1.0, 0.0), (0, 0.9, 0.0), (0, 0.5, 0.0)] * 2)))
    low, high, *_ = np.asarray(yielded["sampling_bounds"]).T
    assert (low <= found).all()
    assert (found < high).all()
    candidates, sums = yielded["sampling_candidates"]
    assert (np.asarray(sums)[:, 0] <= candidates.shape[-1]).all()


@pytest.mark.parametrize("top_k", [300, 3000, 12000, 16999])
def test_any_number_of_tokens(top_k: int, interpreter: None) -> None:
    logits = np.random.default_rng(top_k).normal(size=(1, 17000)).astype(np.float32)
    with choose.using("triton"):
        found = sampling_threshold(*rows(logits, (top_k, 1.0, 0.0)))
    assert (logits >= np.asarray(found)[:, None]).sum() == top_k


def test_more_equal_tokens_than_there_is_room_for(interpreter: None) -> None:
    logits = np.zeros((2, 30000), np.float32)
    logits[:, 100], logits[:, -7:] = 1, -1
    with choose.using("triton"):
        found = sampling_threshold(*rows(logits, (5, 1.0, 0.0), (0, 0.99999, 0.0)))
    assert found.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_zeros_are_kept_together(backend: str, interpreter: None) -> None:
    logits = np.asarray([[-0.0, 0.0, -1.0, -np.inf]] * 3)
    kept = kept_by(backend, rows(logits, (1, 1.0, 0.0), (0, 0.4, 0.0), (0, 1.0, 1.0)))
    assert kept.tolist() == [[True, True, False, False]] * 3


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("vocabulary", [40, 17000])
def test_rows_without_logits_end(vocabulary: int, interpreter: None) -> None:
    logits = np.random.default_rng(0).normal(size=(6, vocabulary))
    logits[:2], logits[2:4, ::2], logits[4:, 7] = -np.inf, np.nan, np.inf
    operands = rows(logits, *[(5, 0.9, 0.1), (0, 0.5, 0.0)] * 3)
    with choose.using("triton"), np.errstate(invalid="ignore"):
        assert sampling_threshold(*operands).shape == (6,)


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_same_tokens_as_the_reference(spread: float, interpreter: None) -> None:
    logits = np.random.default_rng(1).normal(size=(5, 18000)) * spread
    operands = rows(logits, (0, 1.0, 0.0), (20, 0.5, 0.0), (300, 1.0, 0.0), (0, 0.3, 0.0), (0, 1.0, 0.3))
    kept = [kept_by(backend, operands) for backend in BACKENDS]
    assert abs(kept[0].sum(1) - kept[1].sum(1)).max() <= 1  # a sum may be rounded to the other side of top_p
    assert kept[0].sum(1)[:3].tolist() == kept[1].sum(1)[:3].tolist()


def test_a_share_that_float32_cannot_hold_is_that_of_the_highest_logit() -> None:
    logits = np.random.default_rng(2).normal(size=(3, 500))
    kept = kept_by("reference", rows(logits, *[(0, top_p, 0.0) for top_p in (1e-30, 1e-39, 1e-45)]))
    assert kept.sum(1).tolist() == [1, 1, 1]
    assert kept.argmax(1).tolist() == logits.argmax(1).tolist()
