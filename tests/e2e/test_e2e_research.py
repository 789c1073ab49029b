"""A model that was changed in one file is served like any other: scripts/swap_attention.py --serve."""

import importlib.util
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT, serving

from jaxllm import weights
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

SCRIPT = ROOT / "scripts" / "swap_attention.py"
STRENGTH = 1.0


def test_the_changed_model_is_served(stories: Path) -> None:
    greedy = pb.Sampling(max_tokens=40, temperature=0, ignore_eos=True)
    command = (sys.executable, SCRIPT, "--serve", "--strength", STRENGTH)
    with serving("--model", stories, "--http-port", "-1", command=command) as server:
        wire = pb.GenerateRequest(text="Once upon a time", sampling=greedy)
        response = server.inference.Generate(wire, timeout=60)
    specification = importlib.util.spec_from_file_location("swap_attention", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    best = {}
    prompt, drawn = list(response.prompt_token_ids), list(response.token_ids)
    for name, definition in (("changed", script.sharpened(STRENGTH)), ("as it is", None)):
        model = registry.resolve(weights.read_config(stories), definition).build(jnp.float32)
        model = weights.load(model, stories, load_format="auto", dtype=jnp.float32, seed=0)
        hidden, _ = model(DenseStep.of(jnp.asarray([prompt + drawn[:-1]], jnp.int32)), None)
        logits = np.asarray(model.logits(hidden))[len(prompt) - 1 :]
        best[name] = logits.argmax(-1).tolist()
        if name == "changed":  # where two tokens are nearly as likely, either is right
            assert logits[np.arange(40), drawn] == pytest.approx(logits.max(-1), abs=0.01)
    assert sum(a != b for a, b in zip(best["as it is"], drawn, strict=True)) > 3
