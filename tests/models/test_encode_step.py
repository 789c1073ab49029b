"""Decoders over whole ragged sequences: hidden states are those of each sequence in a rectangle of its own."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllm import weights
from jaxllm.errors import ConfigError
from jaxllm.layers.encoder import pool
from jaxllm.layers.step import DenseStep, EncodeStep
from jaxllm.models import registry

REFERENCE = Path(__file__).parent / "reference"
LENGTHS = (3, 9, 1, 11)
TOKENS = 32


def embedding_model(case: str):
    folder = REFERENCE / case
    return weights.load(registry.resolve(weights.read_config(folder), task="embed").build("float32"), folder)


@pytest.mark.parametrize(
    "case",
    [
        "mistral-window",
        "baichuan-alibi-5-heads",
        "gemma2-caps-and-windows",
        "deepseek-v2-lite",  # latents and experts
        "gpt-neox-parallel",
        "mamba-untied-biases",
    ],
)
def test_ragged_rows_are_what_they_are_alone(case):
    graphdef, state = nnx.split(embedding_model(case))
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 90, length, np.int32) for length in LENGTHS]
    packed = rng.integers(0, 90, TOKENS, np.int32)  # padding tokens are any tokens
    packed[: sum(LENGTHS)] = np.concatenate(rows)

    def encode(state, ids, count):
        return nnx.merge(graphdef, state).encode(EncodeStep.of(ids, count))

    def dense(state, ids):
        return nnx.merge(graphdef, state)(DenseStep.of(ids), None)[0]

    options = {"xla_backend_optimization_level": 0}
    hidden = jax.jit(encode, compiler_options=options)(state, packed, np.asarray([*LENGTHS, 0], np.int32))
    rectangle = np.zeros((len(rows), max(LENGTHS)), np.int32)
    for i, row in enumerate(rows):
        rectangle[i, : len(row)] = row
    expected = np.asarray(jax.jit(dense, compiler_options=options)(state, rectangle)).reshape(*rectangle.shape, -1)
    for i, got in enumerate(np.split(np.asarray(hidden), np.cumsum(LENGTHS))[:-1]):
        wanted = expected[i, : LENGTHS[i]]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_sinks_are_refused():
    model = embedding_model("gpt-oss-yarn-window")
    with pytest.raises(ConfigError, match="attention sinks are served in generation alone"):
        model.encode(EncodeStep.of(jnp.zeros(4, jnp.int32), jnp.asarray([4], jnp.int32)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooling_reads_the_rows_own_tokens_alone(dtype):
    rng = np.random.default_rng(6)
    hidden = jnp.asarray(rng.normal(size=(12, 5)), dtype).at[9:].set(jnp.nan)
    step = EncodeStep.of(jnp.zeros(12, jnp.int32), jnp.asarray([4, 1, 4, 0], jnp.int32))
    rows = np.split(np.asarray(hidden[:9], np.float64), [4, 5])
    expected = {"cls": [r[0] for r in rows], "last": [r[-1] for r in rows], "mean": [r.mean(axis=0) for r in rows]}
    for sequence, values in expected.items():
        got = pool(hidden, step, sequence)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got[:3], np.stack(values), rtol=1e-5)


def test_a_projected_hidden_state_is_as_long_as_it_is_said_to_be():
    model = embedding_model("opt-norm-last-projected")
    step = EncodeStep.of(jnp.arange(5), jnp.asarray([3, 2]))
    pooled = model.pooled(model.encode(step), step)
    assert pooled.shape == (2, model.config.pooling.size)
    assert model.config.pooling.size != model.config.hidden_size


def test_a_task_that_the_model_cannot_do_is_refused():
    pooling, both = REFERENCE.with_name("reference_pooling"), REFERENCE.with_name("reference_encoder_decoder")

    def resolve(folder: Path, task: str):
        return registry.resolve(weights.read_config(folder), task=task)

    llama, classes = REFERENCE / "llama-tied-3-heads", pooling / "bert-classes"
    assert resolve(llama, "embed").config.pooling == resolve(llama, "score").config.pooling
    assert resolve(llama, "generate").config.pooling is None
    assert resolve(classes, "classify").config.pooling.labels == ("LABEL_0", "LABEL_1")
    assert resolve(classes, "embed").model_class.__name__ == "BertModel"
    assert resolve(pooling / "llama-classes", "score").config.pooling.size == 1
    for folder, task, made_for in (
        (classes, "generate", "classify"),
        (classes, "score", "classify"),
        (llama, "classify", "generate"),
        (pooling / "bert-masked", "score", "token_classify"),
        (pooling / "llama-classes", "embed", "classify"),
        (pooling / "bert-3-heads", "classify", "embed"),
        (both / "t5-first", "embed", "generate"),
        (both / "bart-scaled", "score", "generate"),
    ):
        with pytest.raises(ConfigError, match=f"task='{task}': .* is made to {made_for}"):
            resolve(folder, task)
