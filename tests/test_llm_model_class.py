"""A model whose attention was changed in one file runs through the whole engine: scripts/swap_attention.py."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import LLM, SamplingParams, weights
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry

SCRIPT = Path(__file__).parents[1] / "scripts" / "swap_attention.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("swap_attention", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_paged_engine_and_the_whole_forward_agree_on_the_changed_model(script: ModuleType, material: Path) -> None:
    golden = json.loads((material / "derived/goldens/dev/stories260K.json").read_text())["cases"][0]
    with LLM(
        str(material / "derived/stories260K-hf"), model_class=script.sharpened(0.3),
        max_num_seqs=1, max_num_batched_tokens=16, max_model_len=128,
    ) as llm:  # fmt: skip
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        (output,) = llm.generate(golden["prompt"], params)
        tokens = output.outputs[0].token_ids
        logits = llm.encode_logits(output.prompt_token_ids + tokens[:-1])[-len(tokens) :]
    assert tokens != golden["greedy_ids"][:40]
    best = logits.argmax(-1)
    for i, token in enumerate(tokens):
        assert logits[i, token] == pytest.approx(logits[i, best[i]], abs=0.01)
    assert (best == tokens).mean() > 0.9


def test_strength_nought_is_the_model_as_it_is(script: ModuleType, material: Path) -> None:
    path = material / "derived/stories260K-hf"
    tokens = jnp.arange(3, 43, dtype=jnp.int32)[None]

    def logits(model_class: type | None) -> np.ndarray:
        model = registry.resolve(weights.read_config(path), model_class).build(jnp.float32)
        model = weights.load(model, path, load_format="auto", dtype=jnp.float32, seed=0)
        hidden, _ = model(DenseStep.of(tokens), None)
        return np.asarray(model.logits(hidden))

    as_it_is = logits(None)
    np.testing.assert_allclose(logits(script.sharpened(0.0)), as_it_is, rtol=1e-5, atol=1e-5)
    assert np.abs(logits(script.sharpened(0.3)) - as_it_is).max() > 0.1
