"""Converted checkpoints: written, read back, and refused when they do not fit."""

import json

import pytest
from checkpoints import LLAMA, REFERENCE, assert_same, build, values, write_pooling

from jaxllm import weights
from jaxllm.errors import CheckpointError, ConfigError
from jaxllm.models import registry

# Orbax's threads go on reading the other parameters after the first has failed, and find its event loop closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("files", ["d/*", "_METADATA", "manifest.ocdbt"])
def test_a_damaged_converted_checkpoint_says_so(checkpoint, tmp_path, files):
    directory, _, _ = checkpoint
    converted = tmp_path / "converted"
    model = weights.load(build(directory), directory)
    weights.save_orbax(model, weights.read_config(directory), directory, converted)
    damaged = sorted((converted / "orbax").rglob(files))
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match=r"is incomplete or damaged: .+run `jaxllm convert` again"):
        weights.load(build(converted), converted)


def test_orbax_round_trip(checkpoint, tmp_path):
    directory, _, _ = checkpoint
    (directory / "tokenizer.json").write_text('{"model": {}}')
    (directory / "generation_config.json").write_text('{"temperature": 0.6}')
    (directory / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (directory / "additional_chat_templates" / f"{name}.jinja").write_text(name)
    write_pooling(directory, ("Transformer", "Pooling"), {"pooling_mode": "lasttoken"})
    model = weights.load(build(directory, "bfloat16"), directory)
    converted = tmp_path / "converted"
    weights.save_orbax(model, weights.read_config(directory), directory, converted)

    assert (converted / "tokenizer.json").read_text() == '{"model": {}}'
    assert not list(converted.glob("*.safetensors"))
    templates = {path.name: path.read_text() for path in (converted / "additional_chat_templates").iterdir()}
    assert templates == {"tool_use.jinja": "tool_use", "rag.jinja": "rag"}
    assert weights.read_sentence_transformer(converted) == weights.read_sentence_transformer(directory) is not None
    assert weights.read_generation_config(converted) == {"temperature": 0.6}
    assert registry.resolve(weights.read_config(converted)).config.dtype == "bfloat16"
    assert_same(values(weights.load(build(converted, "bfloat16"), converted)), values(model))
    wide = values(weights.load(build(converted), converted, load_format="orbax"))
    assert_same(wide, values(weights.load(build(directory), directory)))

    with pytest.raises(ConfigError, match="is not empty; name a new directory"):
        weights.save_orbax(model, weights.read_config(directory), directory, converted)


@pytest.mark.parametrize(
    "source",
    [
        REFERENCE / LLAMA,
        REFERENCE / "gptj-wholly-turned",  # whose head has a bias
        REFERENCE.with_name("reference_pooling") / "roberta-masked",
        REFERENCE.with_name("reference_pooling") / "modernbert-classes",
    ],
    ids=lambda path: path.name,
)
def test_a_converted_checkpoint_embeds_without_its_head(source, tmp_path):
    converted = tmp_path / "converted"
    whole = weights.load(build(source), source)
    weights.save_orbax(whole, weights.read_config(source), source, converted)

    def embedding(path):
        model = registry.resolve(weights.read_config(path), task="embed").build("float32")
        return values(weights.load(model, path))

    loaded = embedding(converted)
    assert_same(loaded, embedding(source))
    assert loaded.keys() < values(whole).keys()


def test_a_converted_checkpoint_that_does_not_fit_names_its_parameters(checkpoint, tmp_path):
    directory, _, _ = checkpoint
    converted = tmp_path / "converted"
    model = weights.load(build(directory), directory)
    weights.save_orbax(model, weights.read_config(directory), directory, converted)
    config = weights.read_config(converted)
    changes = {"tie_word_embeddings": True, "num_hidden_layers": 3, "intermediate_size": 44}
    (converted / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError) as error:
        weights.load(build(converted), converted)
    assert "unused: head.kernel;" in str(error.value)
    assert "missing: layers.2.attention.out.bias" in str(error.value)
    assert "layers.0.mlp.gate_up.kernel is [32, 80] where [32, 88] is expected" in str(error.value)
