"""Mixtures of experts spend nothing on padding, in every kind of step and with every routing."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import weights
from jaxllm.layers.moe import SigmoidTopK, SoftmaxTopK, SparseMixer
from jaxllm.layers.step import DenseStep, EncodeStep, Step
from jaxllm.models import registry

MIXTRAL = next(Path(__file__).parent.glob("reference/mixtral-*"))


def ints(*values: int):
    return jnp.asarray(values, jnp.int32)


def test_steps_say_which_tokens_are_real():
    none = ints(0, 0, 0)
    extend = Step(tokens=ints(1, 2, 3, 4), positions=none, query_start=ints(0, 1, 3, 3), kv_len=ints(5, 2, 0))
    decode = Step(tokens=ints(1, 2, 3), positions=none, query_start=ints(0, 1, 2, 3), kv_len=ints(5, 0, 1), decode=True)
    assert extend.real.tolist() == [True, True, True, False]
    assert decode.real.tolist() == [True, False, True]
    assert EncodeStep.of(ints(1, 2, 3, 4), ints(2, 1)).real.tolist() == [True, True, True, False]
    assert DenseStep.of(none[None]).real is None


@pytest.mark.parametrize(
    ("routing", "corrected"),
    [
        (SoftmaxTopK(3), False),
        (SoftmaxTopK(3), True),
        (SoftmaxTopK(2, norm=None, groups=4, top_groups=2), False),
        (SigmoidTopK(3, groups=4, top_groups=2), True),
        (SparseMixer(0.01), False),
    ],
)
def test_padding_goes_to_no_expert(routing, corrected):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
    correction = jnp.asarray(rng.normal(size=8), jnp.float32) if corrected else None
    real = jnp.asarray([True, False, True, True, False])
    ids, given = routing(logits, correction, real)
    every_id, every_weight = routing(logits, correction, None)
    assert every_id.min() >= 0
    np.testing.assert_array_equal(ids, np.where(real[:, None], every_id, -1))
    np.testing.assert_array_equal(given[real], every_weight[real])


def test_a_block_hands_its_mixture_the_real_tokens_alone():
    model = weights.load(registry.resolve(weights.read_config(MIXTRAL)).build("float32"), MIXTRAL)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, model.config.hidden_size)), jnp.float32)
    step = Step(tokens=ints(1, 2, 3, 4), positions=ints(0, 0, 0, 0), query_start=ints(0, 1, 2), kv_len=ints(5, 2))
    out, every = (model.layers[0].feed(x, s) for s in (step, DenseStep.of(ints(1, 2, 3, 4)[None])))
    assert not np.asarray(out[2:]).any()
    assert np.abs(every[2:]).max() > 0
    np.testing.assert_allclose(out[:2], every[:2], rtol=1e-6, atol=1e-6)
