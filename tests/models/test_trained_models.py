"""Two small trained models: a GPT-2 that sorts letters, with its activations, and a Llama that tells stories."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paged import Program, Sequences, draw_greedily

from jaxllm import weights
from jaxllm.layers.residual import summed
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry


def load(path):
    return weights.load(registry.resolve(weights.read_config(path)).build("float32"), path)


@pytest.fixture(scope="module")
def sorter(material):
    return load(material / "derived" / "gpt-nano-sort-hf")


def test_every_activation_of_the_sorter(material, sorter):
    recorded = json.loads((material / "models" / "gpt-nano-sort" / "gpt-nano-sort-t0-partials.json").read_text())

    def expected(name: str) -> np.ndarray:
        values = np.frombuffer(base64.b64decode(recorded[name]["data"]), np.float32)
        return values.reshape(recorded[name]["shape"])

    tokens = expected("idx").astype(np.int32)

    def assert_same(actual: jax.Array, name: str) -> None:
        wanted = expected(name)
        np.testing.assert_allclose(np.asarray(actual).reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5, err_msg=name)

    step = DenseStep.of(jnp.asarray(tokens))
    x = sorter.embed(step.tokens) + sorter.positions(step.positions)
    assert_same(x, "x")
    block = sorter.layers[0]
    normed = block.attention_norm(x)
    assert_same(normed, "ln1")
    assert_same(block.attention.qkv(normed), "qkv")
    mixed, _ = block.attention(normed, None, step, None)
    assert_same(mixed, "yProj")
    assert_same(block.mlp_norm(x + mixed), "ln2")
    assert_same(block.mlp(block.mlp_norm(x + mixed)), "mlp")
    for index, layer in enumerate(sorter.layers):
        stream, _ = layer(x, None, step, None)
        x = summed(stream)
        assert_same(x, f"block{index}")
    assert_same(sorter.norm(x), "ln_f")
    assert_same(sorter.logits(sorter.norm(x)), "lm_head")


def test_the_sorter_sorts(sorter):
    paged = Sequences(Program(sorter))
    letters = [[2, 0, 1, 1, 2, 0], [1, 1, 0, 0, 0, 2], [2, 2, 2, 1, 0, 1]]
    last = {row: logits[-1] for row, logits in paged.extend(dict(enumerate(letters))).items()}
    drawn = draw_greedily(paged.decode, last, 6)
    assert [drawn[row] for row in range(3)] == [sorted(row) for row in letters]


def test_stories_as_recorded(material):
    recorded = json.loads((material / "derived" / "goldens" / "dev" / "stories260K.json").read_text())
    program = Program(load(material / "derived" / "stories260K-hf"))
    cases = recorded["cases"][:4]
    whole = [np.asarray(case["prompt_ids"] + case["greedy_ids"], np.int32) for case in cases]
    for case, ids, logits in zip(cases, whole, program.dense(whole), strict=True):
        prompt = len(case["prompt_ids"])
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        given = [value for value in case["prompt_logprobs"] if value is not None]
        np.testing.assert_allclose(logprobs[np.arange(prompt - 1), ids[1:prompt]], given, rtol=1e-4, atol=1e-4)
        top = np.sort(logits[prompt - 1 : -1], axis=-1)
        sure = top[:, -1] - top[:, -2] > 0.01
        assert sure.sum() > 10
        chosen = logits[prompt - 1 : -1].argmax(axis=-1)
        assert np.array_equal(chosen[sure], np.asarray(case["greedy_ids"])[sure])
