"""The dense path trains: every parameter of a family that scales, caps, clips or turns by layer has a gradient."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllm import weights
from jaxllm.layers.parameter import parameters
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry

REFERENCE = Path(__file__).parent / "reference"


@pytest.mark.parametrize(
    "name",
    [
        "gemma2-caps-and-windows",
        "cohere2-windows",
        "olmo-clipped",
        "ministral3-growing-queries",
        "deepseek-v2-groups",
        "mamba-tied",
        "bamba-groups",
    ],
)
def test_every_parameter_has_a_finite_gradient(name):
    folder = REFERENCE / name
    model = weights.load(registry.resolve(weights.read_config(folder)).build("float32"), folder)
    graphdef, state = nnx.split(model)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 9)), jnp.int32)

    @jax.jit
    def gradient(state):
        def loss(state):
            model = nnx.merge(graphdef, state)
            hidden, _ = model(DenseStep.of(tokens), None)
            logprobs = jax.nn.log_softmax(model.logits(hidden).reshape(*tokens.shape, -1)[:, :-1])
            return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()

        return jax.grad(loss)(state)

    gradients = parameters(nnx.merge(graphdef, gradient(state)))
    assert gradients.keys() == parameters(model).keys()
    for path, leaf in gradients.items():
        value = np.asarray(leaf.get_value())
        assert np.isfinite(value).all(), path
        assert np.abs(value).max() > 0, path
