"""Loading: what is read, how it is cast, and what each broken checkpoint is told."""

import importlib
import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints import LLAMA, REFERENCE, assert_same, build, values
from safetensors.numpy import load_file, save_file

from jaxllm import weights
from jaxllm.errors import CheckpointError, ConfigError
from jaxllm.layers.parameter import parameters
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry
from jaxllm.models.causal_lm import CausalLM


def test_parts_are_fused_and_transposed(checkpoint):
    directory, tensors, _ = checkpoint
    got = values(weights.load(build(directory), directory))
    prefix = "model.layers.1.self_attn."
    expected = np.concatenate([tensors[f"{prefix}{p}_proj.weight"] for p in "qkv"]).T.astype(np.float32)
    np.testing.assert_array_equal(np.asarray(got["layers.1.attention.qkv.kernel"]), expected)
    expected = np.concatenate([tensors[f"{prefix}{p}_proj.bias"] for p in "qkv"]).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(got["layers.1.attention.qkv.bias"]), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", ["llama-tied-3-heads", LLAMA, "qwen3-biases-mixed-windows"])  # F32, BF16, F16
def test_every_type_is_cast_to_every_type(case, dtype):
    """The reference weights are bfloat16 numbers, so that neither way through float16 (in range) nor float32 rounds."""
    path = REFERENCE / case
    got = values(weights.load(build(path, dtype), path))
    assert {str(array.dtype) for array in got.values()} == {dtype}
    exact = values(weights.load(build(path), path))
    for name, array in got.items():
        np.testing.assert_allclose(
            np.asarray(array.astype(jnp.float32)), np.asarray(exact[name]), rtol=0, atol=1e-6, err_msg=name
        )


def test_dtype_of_load_overrides_the_models():
    model = weights.load(build(REFERENCE / LLAMA), REFERENCE / LLAMA, dtype="bfloat16")
    assert {array.dtype for array in values(model).values()} == {jnp.dtype("bfloat16")}


def test_half_precision_models_compute_in_their_type():
    path = REFERENCE / LLAMA
    tokens = DenseStep.of(jnp.arange(12, dtype=jnp.int32).reshape(2, 6))
    exact = build(path)
    exact_logits = exact.logits(weights.load(exact, path)(tokens, None)[0])
    for dtype in ("bfloat16", "float16"):
        model = build(path, dtype)
        hidden, _ = weights.load(model, path)(tokens, None)
        assert hidden.dtype == jnp.dtype(dtype)
        logits = model.logits(hidden)
        assert logits.dtype == jnp.float32
        assert float(jnp.abs(logits - exact_logits).mean()) < 0.05 * float(exact_logits.std())


@pytest.mark.parametrize(
    ("case", "changes", "rounded"),
    [
        ("gemma-wide-heads", {}, True),
        ("gemma2-without-caps", {"hidden_size": 32}, True),
        ("gemma3-two-rotations", {}, True),
        ("vaultgemma-full", {}, True),
        ("minicpm3-factors", {"scale_emb": 5.3}, True),
        ("minicpm-old-names", {"scale_emb": 5.3}, False),
        ("afmoe-windows-scaled", {}, False),
        ("granite-factors", {"embedding_multiplier": 5.3}, False),
        ("hyperclovax-factors", {"embedding_multiplier": 5.3}, False),
        ("falcon-h1-factors", {"embedding_multiplier": 5.3}, False),
    ],
)
def test_an_embeddings_factor_is_rounded_where_its_family_rounds_it(case, changes, rounded, monkeypatch):
    """In bfloat16, which the recorded logits, in float32, cannot tell."""
    given = []

    def run_layers(self, x, *shared, **options):
        given.append(x)
        return x, None

    monkeypatch.setattr(CausalLM, "run_layers", run_layers)
    config = weights.read_config(REFERENCE / case) | changes
    model = registry.resolve(config).build("bfloat16")
    weights.load(model, "", load_format="dummy")(DenseStep.of(jnp.arange(90)[None]), None)
    factors = model.config.embed_scale, np.asarray(model.config.embed_scale, ml_dtypes.bfloat16)
    whole, short = (
        (np.asarray(model.embed.table[...][:90], np.float32) * np.float32(factor)).astype(ml_dtypes.bfloat16)
        for factor in factors
    )
    assert (whole != short).any()
    np.testing.assert_array_equal(np.asarray(given[0]), short if rounded else whole)


def test_progress_counts_parameters():
    calls = []
    model = weights.load(build(REFERENCE / LLAMA), REFERENCE / LLAMA, progress=lambda *call: calls.append(call))
    count = len(parameters(model))
    assert calls == [(done, count, "loading weights") for done in range(1, count + 1)]


def shard(directory: Path, tensors: dict[str, np.ndarray]) -> dict[str, str]:
    """Rewrites the checkpoint as two files and an index; returns the weight map."""
    (directory / "model.safetensors").unlink()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    names = sorted(tensors)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}  # q, k and v end in different files
    for file in files:
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, directory / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def test_shards(checkpoint):
    directory, tensors, _ = checkpoint
    whole = values(weights.load(build(directory), directory))
    shard(directory, tensors)
    assert_same(values(weights.load(build(directory), directory)), whole)
    (directory / "model.safetensors.index.json").unlink()
    assert_same(values(weights.load(build(directory), directory)), whole)


def test_a_missing_shard_is_named(checkpoint):
    directory, tensors, _ = checkpoint
    shard(directory, tensors)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names files that are not there: model-00002-of-00002.safetensors"):
        weights.load(build(directory), directory)


def test_a_broken_index_is_named(checkpoint):
    directory, tensors, _ = checkpoint
    shard(directory, tensors)
    for text in ("{", "[]", '{"weight_map": []}'):
        (directory / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="not an index of shards"):
            weights.load(build(directory), directory)


def test_every_missing_unused_and_misshapen_tensor_is_named_at_once(checkpoint):
    directory, tensors, write = checkpoint
    del tensors["model.layers.0.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.1.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    tensors["model.layers.2.mlp.up_proj.weight"] = np.ones((4, 4), np.float32)
    tensors["model.embed_tokens.weight"] = np.ones((97, 31), np.float32)
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.ones((16, 32), np.float32)
    tensors["lm_head.weight"] = np.ones((97, 32), np.int8)
    write()
    with pytest.raises(CheckpointError) as error:
        weights.load(build(directory), directory)
    message = str(error.value)
    for part in (
        "does not fit LlamaForCausalLM",
        "missing: model.layers.0.self_attn.k_proj.weight, model.norm.weight;",
        "unused: model.layers.1.self_attn.q_norm.weight, model.layers.2.mlp.up_proj.weight;",
        "model.embed_tokens.weight is [97, 31] where [97, 32] is expected",
        "model.layers.0.self_attn.q_proj.weight is [16, 32] where [32, 32] is expected",
        "lm_head.weight is of type I8 where one of F32, F16, BF16 is expected",
    ):
        assert part in message


def test_a_missing_head_hints_at_tying(checkpoint):
    directory, tensors, write = checkpoint
    del tensors["lm_head.weight"]
    write()
    with pytest.raises(CheckpointError, match=r"config\.json must say tie_word_embeddings: true"):
        weights.load(build(directory), directory)


def say_tied(directory: Path, tied: bool = True) -> None:
    config = weights.read_config(directory) | {"tie_word_embeddings": tied}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("staged", [1, 4000, 1 << 20])  # bytes: one row at a time, some, all
def test_a_tied_checkpoint_may_hold_its_head_again(checkpoint, monkeypatch, staged):
    monkeypatch.setattr(importlib.import_module("jaxllm.weights.load"), "_STAGED_BYTES", staged)
    directory, tensors, write = checkpoint
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)
    write()
    say_tied(directory)
    assert "head.kernel" not in values(weights.load(build(directory), directory))
    tensors["lm_head.weight"][-1, -1] += 1e-5  # less than bfloat16 tells apart
    write()
    assert "head.kernel" not in values(weights.load(build(directory, "bfloat16"), directory))
    with pytest.raises(CheckpointError, match="differs from"):
        weights.load(build(directory), directory)


def test_a_head_that_differs_from_the_embedding_is_no_tied_one(checkpoint):
    directory, tensors, write = checkpoint
    say_tied(directory)
    message = r"lm_head\.weight differs from model\.embed_tokens\.weight, .* Set it to false in config\.json to load"
    with pytest.raises(CheckpointError, match=message):
        weights.load(build(directory), directory)
    embedding = registry.resolve(weights.read_config(directory), task="embed").build("float32")
    weights.load(embedding, directory)  # which has no use for a head of any kind
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][:-1].copy()
    write()
    with pytest.raises(CheckpointError, match=message):
        weights.load(build(directory), directory)
    say_tied(directory, False)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is \[96, 32\] where \[97, 32\] is expected"):
        weights.load(build(directory), directory)


def test_a_masked_models_head_that_differs_from_the_embedding_is_no_tied_one(tmp_path):
    source = REFERENCE.with_name("reference_pooling") / "bert-masked"
    tensors = load_file(source / "model.safetensors")
    embedding = tensors["bert.embeddings.word_embeddings.weight"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    say_tied(tmp_path)
    for head, same in ((embedding, True), (embedding + 1, False)):
        save_file(tensors | {"cls.predictions.decoder.weight": head}, tmp_path / "model.safetensors")
        if same:
            weights.load(build(tmp_path), tmp_path)
            continue
        with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.weight differs from bert\.embeddings"):
            weights.load(build(tmp_path), tmp_path)


def test_biases_that_the_config_denies_are_unused(checkpoint):
    directory, _, _ = checkpoint
    config = weights.read_config(directory) | {"attention_bias": False}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unused: model\.layers\.0\.self_attn\.k_proj\.bias"):
        weights.load(build(directory), directory)


@pytest.mark.parametrize("keep", [0, 5, 200, -1000])
def test_a_truncated_file_says_so(checkpoint, keep):
    directory, _, _ = checkpoint
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors \(\d+ bytes\) is truncated or damaged: .*fetch"):
        weights.load(build(directory), directory)


def test_pickles_are_refused(checkpoint):
    directory, _, _ = checkpoint
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match=r"pickle files only \(pytorch_model.bin\)\. Loading a pickle runs"):
        weights.load(build(directory), directory)


def test_a_directory_without_weights_offers_dummy_ones(checkpoint):
    directory, _, _ = checkpoint
    (directory / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"no \*\.safetensors file; fetch the weights, or pass --load-format dummy"
    ):
        weights.load(build(directory), directory)
    with pytest.raises(CheckpointError, match="no folder 'orbax'; `jaxllm convert` writes one"):
        weights.load(build(directory), directory, load_format="orbax")


def test_dummy_weights_depend_on_the_seed_alone(tmp_path):
    path = REFERENCE / LLAMA

    def dummy(seed: int, dtype: str = "bfloat16"):
        return values(weights.load(build(path, dtype), tmp_path, load_format="dummy", seed=seed))

    one = dummy(1)
    assert_same(one, dummy(1))
    other = dummy(2)
    kernels = [name for name in one if name.endswith(("kernel", "table"))]
    assert not any(np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in kernels)
    assert len({np.asarray(one[name]).tobytes() for name in kernels}) == len(kernels)  # no two layers the same
    for name, array in one.items():
        assert array.dtype == ml_dtypes.bfloat16
        if name.endswith("norm.weight"):
            assert (array == 1).all()
        elif name.endswith("bias"):
            assert (array == 0).all()
    assert float(dummy(1, "float32")["embed.table"].std()) == pytest.approx(0.02, rel=0.1)


def test_demo_is_packaged():
    assert weights.resolve_model_path("demo").name == "demo_model"


def test_paths(checkpoint):
    directory, _, _ = checkpoint
    assert weights.resolve_model_path(str(directory)) == directory
    with pytest.raises(ConfigError, match="'org/name': no such directory; name one that holds"):
        weights.resolve_model_path("org/name")
    with pytest.raises(ConfigError, match="is a file: name the directory"):
        weights.resolve_model_path(__file__)


def test_config_files(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        weights.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        weights.read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object, not list"):
        weights.read_config(tmp_path)
    assert weights.read_generation_config(tmp_path) == {}


@pytest.mark.parametrize("staged", [1, 4000, 1 << 20])  # bytes: one expert at a time, some, all
def test_experts_are_stacked_in_place(monkeypatch, staged):
    monkeypatch.setattr(importlib.import_module("jaxllm.weights.load"), "_STAGED_BYTES", staged)
    directory = REFERENCE / "mixtral-window-old-names"
    got = values(weights.load(build(directory, "bfloat16"), directory))
    tensors = load_file(directory / "model.safetensors")
    for layer, expert in ((0, 0), (1, 3), (1, 4)):
        gate, down, up = (
            tensors[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{i}.weight"] for i in (1, 2, 3)
        )
        stacked = np.asarray(got[f"layers.{layer}.mlp.experts.gate_up"])[expert]
        np.testing.assert_array_equal(stacked, np.concatenate([gate, up]).T)
        np.testing.assert_array_equal(np.asarray(got[f"layers.{layer}.mlp.experts.down"])[expert], down.T)


def test_a_missing_expert_is_named(tmp_path):
    source = REFERENCE / "mixtral-window-old-names"
    tensors = load_file(source / "model.safetensors")
    lost = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    tensors["model.layers.0.block_sparse_moe.experts.5.w1.weight"] = tensors.pop(lost)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=rf"missing: {lost}; unused: \S+experts.5.w1.weight") as error:
        weights.load(build(tmp_path), tmp_path)
    assert "experts.2." not in str(error.value)
