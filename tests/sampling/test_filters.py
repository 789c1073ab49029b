"""The threshold search keeps what sorting keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.sampling import RowParams, narrow

ROUNDING = 3e-6  # share of the mass within which float32 and float64 sums may disagree about top-p


@jax.jit
def kept(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """The tokens that may be drawn at temperature 1, [B, V] bool."""
    rows = jnp.zeros_like(top_k)
    params = RowParams(jnp.ones_like(top_p), top_k, top_p, min_p, jnp.zeros((*top_k.shape, 2), jnp.uint32), rows)
    return narrow(logits, params) > -jnp.inf


def by_sorting(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> tuple[set[int], set[int]]:
    """The tokens that must be kept and those that may be: they differ where a sum meets top_p within rounding."""
    logits64 = logits.astype(np.float64)
    order = np.argsort(-logits64, kind="stable")
    order = order[logits64[order] > -np.inf]
    weight = np.exp(logits64 - logits64.max())
    sure, maybe = (
        [t for t in order if logits64[t] >= logits64.max() + np.log(np.float64(min_p)) + slack] if min_p else order
        for slack in (1e-6 * (1 + abs(logits64.max())), -1e-6 * (1 + abs(logits64.max())))
    )
    bounds = []
    for tokens, slack in ((sure, -ROUNDING), (maybe, ROUNDING)):
        tokens = np.asarray(tokens, int)
        if 0 < top_k < len(tokens):
            tokens = tokens[logits[tokens] >= logits[tokens[top_k - 1]]]
        if top_p < 1 and len(tokens):
            total = weight[tokens].sum()
            above = [weight[tokens][logits[tokens] > logits[t]].sum() for t in tokens]
            tokens = tokens[np.asarray(above) < (np.float32(top_p) + slack) * total]
        bounds.append(set(tokens.tolist()))
    return bounds[0], bounds[1]


def check(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> None:
    must, may = by_sorting(logits, top_k, top_p, min_p)
    got = kept(
        logits[None], np.asarray([top_k], np.int32), np.asarray([top_p], np.float32), np.asarray([min_p], np.float32)
    )
    got = set(np.flatnonzero(np.asarray(got)[0]).tolist())
    assert must <= got <= may
    assert got, "at least the most likely token is kept"


V = 40
coarse = st.integers(-6, 6).map(lambda n: n / 2)  # many exact ties
fine = st.floats(-30, 30, width=32, allow_subnormal=False)
near = st.integers(0, 3).map(lambda n: float(np.float32(1.0) + np.float32(n) * np.float32(2.0**-23)))
value = st.one_of(coarse, fine, near, st.just(-np.inf), st.just(-0.0))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(value, min_size=V, max_size=V).filter(lambda x: max(x) > -np.inf),
    st.integers(0, V + 3),
    st.one_of(st.just(1.0), st.integers(1, 1000).map(lambda n: n / 1000)),
    st.one_of(st.just(0.0), st.integers(0, 1000).map(lambda n: n / 1000)),
)
def test_same_set_as_sorting(logits: list[float], top_k: int, top_p: float, min_p: float) -> None:
    check(np.asarray(logits, np.float32), top_k, top_p, min_p)


@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 3000])
@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.9, 0.3, 1e-6])
def test_large_vocabulary(top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(top_k).normal(0, 4, 3001).astype(np.float32)
    check(logits, top_k, top_p, 0.0)


def test_ties_at_the_border_are_kept_together() -> None:
    logits = jnp.asarray([[3.0, 1.0, 1.0, 1.0, 0.0]], jnp.float32)
    one, zero = jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32)
    assert kept(logits, jnp.asarray([2], jnp.int32), one, zero)[0].tolist() == [True, True, True, True, False]
    assert kept(logits, jnp.asarray([1], jnp.int32), one, zero)[0].tolist() == [True, False, False, False, False]
    assert kept(logits, jnp.asarray([0], jnp.int32), 0.8 * one, zero)[0].tolist() == [True, True, True, True, False]


def test_rows_are_filtered_by_their_own_parameters() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (6, 100)).astype(np.float32)
    top_k = np.asarray([0, 1, 5, 0, 0, 9], np.int32)
    top_p = np.asarray([1, 1, 1, 0.5, 1, 0.7], np.float32)
    min_p = np.asarray([0, 0, 0, 0, 0.2, 0.01], np.float32)
    together = np.asarray(kept(logits, top_k, top_p, min_p))
    for i in range(6):
        alone = np.asarray(kept(logits[i : i + 1], top_k[i : i + 1], top_p[i : i + 1], min_p[i : i + 1]))
        assert (alone[0] == together[i]).all()
    assert together[0].all()
    assert together[1].sum() == 1
    assert together[2].sum() == 5
