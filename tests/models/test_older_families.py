"""What the parity cases are too small to hold: ALiBi's slopes, Baichuan 2's head, other names and odd layouts."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from paged import Program
from safetensors.numpy import load_file, save_file

from jaxllm import weights
from jaxllm.errors import ConfigError
from jaxllm.layers.attention import slopes_of
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry

REFERENCE = Path(__file__).parent / "reference"


def config_of(case: str, **changes):
    values = json.loads((REFERENCE / case / "config.json").read_text()) | changes
    return registry.resolve({name: value for name, value in values.items() if value is not ...}).config


def test_alibi_slopes_are_the_papers():
    assert slopes_of(8) == tuple(2.0**-i for i in range(1, 9))
    assert slopes_of(1) == (2.0**-8,)
    assert slopes_of(16, bias_max=4.0) == pytest.approx([2.0 ** (-i / 4) for i in range(1, 17)])
    twelve = [*(2.0**-i for i in range(1, 9)), *(2.0 ** (0.5 - i) for i in range(1, 5))]
    assert slopes_of(12) == pytest.approx(twelve)


def test_baichuan_2_has_a_head_of_unit_vectors(tmp_path):
    case = REFERENCE / "baichuan-turned"
    config = json.loads((case / "config.json").read_text()) | {"vocab_size": 125696}
    tensors = load_file(case / "model.safetensors")
    dtype = tensors["lm_head.weight"].dtype
    head = np.random.default_rng(0).normal(size=(125696, 32)).astype(dtype)
    head[5] = 0
    tensors |= {"model.embed_tokens.weight": head[::-1].copy(), "lm_head.weight": head}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")

    model = weights.load(registry.resolve(config).build("float32"), tmp_path)
    hidden, _ = model(DenseStep.of(jnp.asarray([[3, 1, 4, 1, 5]], jnp.int32)), None)
    wide = head.astype(np.float32)
    length = np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(model.logits(hidden), np.asarray(hidden) @ (wide / length).T, rtol=1e-4, atol=1e-4)


def test_gpt_neox_head_under_the_name_of_transformers_5(tmp_path):
    case = REFERENCE / "gpt-neox-parallel"
    tensors = load_file(case / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    shutil.copyfile(case / "config.json", tmp_path / "config.json")
    save_file(tensors, tmp_path / "model.safetensors")
    ids = [np.asarray([3, 1, 4, 1, 5], np.int32)]
    model = registry.resolve(weights.read_config(case)).build("float32")
    expected = Program(weights.load(model, case)).dense(ids)
    np.testing.assert_array_equal(Program(weights.load(model, tmp_path)).dense(ids), expected)


def test_falcons_first_names_mean_the_same():
    old, new = config_of("falcon-first-names"), config_of("falcon-groups-two-norms")
    assert (old.num_heads, old.num_kv_heads, old.num_layers) == (new.num_heads, new.num_kv_heads, new.num_layers)
    assert (old.parallel_norms, old.intermediate_size, old.max_position_embeddings) == (2, 128, 2048)
    assert config_of("falcon-one-key").num_kv_heads == 1
    assert config_of("falcon-alibi-one-after-the-other").alibi == pytest.approx(
        [2.0**-i / 8**0.5 for i in (2, 4, 6, 8)]
    )


def test_windows_of_gpt_neo():
    assert config_of("gpt-neo-mixed-windows-untied").windows == (7, 7, None)
    assert config_of("gpt-neo-mixed-windows-untied", attention_layers=...).windows == (7, 7, None)
    assert config_of("gpt-neo-every-other-window", attention_layers=..., attention_types=...).windows == (None, 5)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("phi-half-turned", {"model_type": "phi-msft"}, "model_type='phi-msft' is not supported, only 'phi'"),
        ("phi-half-turned", {"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
        ("phi-half-turned", {"rope_parameters": {"partial_rotary_factor": 0.7}}, "head_dim=5 must be even"),
        ("gptj-partly-turned", {"rotary_dim": 18}, "rotary_dim=18 must be at most n_embd / n_head = 16"),
        ("codegen-8-heads", {"n_head": 2}, "n_head=2 must be a multiple of 4"),
        ("starcoder2-window-tied", {"norm_type": "rms_norm"}, "norm_type='rms_norm' is not supported"),
        ("gpt-bigcode-one-key", {"num_key_value_heads": 3}, "num_key_value_heads=3 is not supported, only 1"),
        ("opt-norm-first", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False is not"),
        ("gpt-neo-every-other-window", {"attention_layers": ["local"]}, "attention_layers must hold 2 times global"),
        ("falcon-groups-two-norms", {"parallel_attn": False}, "parallel_attn=False is not supported"),
        (
            "bloom-bare-names",
            {"apply_residual_connection_post_layernorm": True},
            "post_layernorm=True is not supported",
        ),
        ("mpt-4-heads", {"no_bias": False}, "no_bias=False is not supported"),
        ("mpt-4-heads", {"attn_config": {"alibi": False}}, "attn_config alibi=False is not supported"),
        ("mpt-4-heads", {"attn_config": {"rope": True}}, "attn_config unknown field rope=True"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(case, changes, message):
    config_of(case)
    with pytest.raises(ConfigError, match=message):
        config_of(case, **changes)
