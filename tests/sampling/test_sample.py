"""Draws follow the distribution and their keys; logprobs follow their definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.sampling import RowParams, draw, greedy, narrow, token_logprobs

sampled = jax.jit(draw)


def params(n: int, **changes: Any) -> RowParams:
    """n rows of neutral parameters with temperature 1, each with a seed of its own."""
    fields: dict[str, Any] = {
        "temperature": np.ones(n, np.float32),
        "top_k": np.zeros(n, np.int32),
        "top_p": np.ones(n, np.float32),
        "min_p": np.zeros(n, np.float32),
        "seed": np.stack([np.arange(n, dtype=np.uint32) + 17, np.zeros(n, np.uint32)], axis=1),
        "sample_index": np.zeros(n, np.int32),
    }
    fields |= {k: np.broadcast_to(np.asarray(v, fields[k].dtype), fields[k].shape) for k, v in changes.items()}
    return RowParams(**{k: jnp.asarray(v) for k, v in fields.items()})


def rows(p: RowParams, pick: np.ndarray) -> RowParams:
    return jax.tree.map(lambda x: x[pick], p)


def chi_square(tokens: np.ndarray, p: np.ndarray) -> float:
    """The statistic in standard deviations from its mean, over the classes of nonzero probability."""
    support = p > 0
    assert np.isin(tokens, np.flatnonzero(support)).all()
    expected = len(tokens) * p[support]
    observed = np.bincount(tokens, minlength=len(p))[support]
    freedom = support.sum() - 1
    return float((((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("changes", "temperature", "support"),
    [
        ({}, 1.0, 12),
        ({"temperature": 0.5}, 0.5, 12),
        ({"top_k": 4}, 1.0, 4),
        ({"temperature": 2.0, "top_k": 7}, 2.0, 7),
    ],
)
def test_draw_frequencies(changes: dict[str, float], temperature: float, support: int) -> None:
    n = 40_000
    logits = np.sort(np.random.default_rng(3).normal(0, 1, 12).astype(np.float32))[::-1].copy()
    weight = np.exp(logits.astype(np.float64) / temperature)
    weight[support:] = 0
    tokens = sampled(jnp.tile(jnp.asarray(logits), (n, 1)), params(n, **changes), jnp.full(n, 5, jnp.int32))
    assert abs(chi_square(np.asarray(tokens), weight / weight.sum())) < 4


def test_draws_by_position_and_sample_are_independent() -> None:
    """The same seed at other positions, samples and high words draws afresh, and just as rightly."""
    n = 20_000
    p = np.asarray([0.4, 0.3, 0.2, 0.1])
    logits = jnp.tile(jnp.log(jnp.asarray(p, jnp.float32)), (n, 1))
    same = params(n, seed=[[9, 9]])
    ramp = jnp.arange(n, dtype=jnp.int32)
    zero = jnp.zeros(n, jnp.int32)
    by_position = np.asarray(sampled(logits, same, ramp))
    by_sample = np.asarray(sampled(logits, params(n, seed=[[9, 9]], sample_index=ramp), zero))
    high = np.stack([np.full(n, 9), np.arange(n)], axis=1)
    by_high_word = np.asarray(sampled(logits, params(n, seed=high), zero))
    for tokens in (by_position, by_sample, by_high_word):
        assert abs(chi_square(tokens, p)) < 4
    for a, b in ((by_position, by_sample), (by_position, by_high_word), (by_position[1:], by_position[:-1])):
        assert abs(chi_square(a * 4 + b, np.outer(p, p).ravel())) < 4
    assert len(set(np.asarray(sampled(logits[:9], params(9, seed=[[9, 9]]), zero[:9])))) == 1


def test_a_row_draws_the_same_alone_and_in_any_company() -> None:
    n, vocab = 24, 500
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 3, (n, vocab)).astype(np.float32))
    p = params(
        n,
        temperature=rng.choice([0.0, 0.7, 1.0, 1.5], n),
        top_k=rng.choice([0, 1, 10, 100], n),
        top_p=rng.choice([1.0, 0.95, 0.5], n),
        min_p=rng.choice([0.0, 0.05], n),
        sample_index=rng.integers(0, 3, n),
    )
    position = jnp.asarray(rng.integers(0, 1000, n), jnp.int32)
    together = np.asarray(sampled(logits, p, position))
    shuffled = rng.permutation(n)
    assert (np.asarray(sampled(logits[shuffled], rows(p, shuffled), position[shuffled])) == together[shuffled]).all()
    for i in range(0, n, 5):
        one = np.asarray([i])
        assert sampled(logits[one], rows(p, one), position[one])[0] == together[i]


def test_a_vocabulary_of_several_groups_members_and_parts() -> None:
    """Few likely tokens among unlikely ones, some of them of one group."""
    n, vocabulary = 2_000, 25_000
    p = np.full(vocabulary, 0.1 / (vocabulary - 5))
    likely = [3, 3 + 2048, 1027, 20_000, 24_999]
    p[likely] = [0.3, 0.2, 0.1, 0.2, 0.1]
    logits = jnp.tile(jnp.log(jnp.asarray(p, jnp.float32)), (n, 1))
    tokens = np.asarray(sampled(logits, params(n, temperature=2.0), jnp.zeros(n, jnp.int32)))
    weight = np.sqrt(p)
    weight /= weight.sum()
    classes = np.where(np.isin(tokens, likely), np.searchsorted(np.sort(likely), tokens), 5 + tokens % 7)
    expected = np.append(weight[np.sort(likely)], [0.0] * 7)
    for rest in range(7):
        others = np.setdiff1d(np.arange(rest, vocabulary, 7), likely)
        expected[5 + rest] = weight[others].sum()
    assert abs(chi_square(classes, expected)) < 4


def test_narrowed_logits_are_those_that_may_be_drawn() -> None:
    logits = jnp.asarray(np.random.default_rng(6).normal(0, 2, (3, 40)).astype(np.float32))
    given = params(3, temperature=[0.5, 0.0, 2.0], top_k=[3, 3, 0])
    got = np.asarray(narrow(logits, given))
    assert np.isfinite(got).sum(1).tolist() == [3, 40, 40]
    np.testing.assert_allclose(got[0].max(), 2 * np.asarray(logits)[0].max(), rtol=1e-6)
    assert (got[1] == np.asarray(logits)[1]).all()


def test_greedy_rows_among_sampled_ones() -> None:
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 1, (8, 50)).astype(np.float32))
    tokens = sampled(logits, params(8, temperature=[0, 1, 0, 1, 0, 1e-6, 0, 1]), jnp.zeros(8, jnp.int32))
    best = greedy(logits)
    assert [tokens[i] == best[i] for i in (0, 2, 4, 5, 6)] == [True] * 5
    assert greedy(jnp.asarray([[1.0, 2.0, 2.0]]))[0] == 1


def test_top_p_almost_nothing_is_greedy() -> None:
    logits = jnp.asarray(np.random.default_rng(2).normal(0, 1, (8, 50)).astype(np.float32))
    assert (sampled(logits, params(8, top_p=1e-6), jnp.zeros(8, jnp.int32)) == greedy(logits)).all()


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.zeros((2000, 5), np.float32)
    logits[:, [1, 3]] = -np.inf
    tokens = np.asarray(sampled(jnp.asarray(logits), params(2000), jnp.zeros(2000, jnp.int32)))
    assert set(tokens) == {0, 2, 4}


def test_logprobs() -> None:
    logits = np.random.default_rng(5).normal(0, 3, (7, 60)).astype(np.float32)
    tokens = np.asarray([0, 3, 59, 20, 7, 7, 1], np.int32)
    norm = np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    expected = logits - norm
    got = token_logprobs(jnp.asarray(logits), jnp.asarray(tokens), 5)
    picked = expected[np.arange(7), tokens]
    np.testing.assert_allclose(got.logprob, picked, atol=1e-5)
    np.testing.assert_array_equal(got.rank, 1 + (expected > picked[:, None]).sum(-1))
    order = np.argsort(-expected, axis=-1)[:, :5]
    np.testing.assert_array_equal(got.top_ids, order)
    np.testing.assert_allclose(got.top, np.take_along_axis(expected, order, -1), atol=1e-5)
    assert token_logprobs(jnp.asarray(logits), jnp.asarray(tokens), 0).top.shape == (7, 0)
