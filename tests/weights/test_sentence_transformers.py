"""What sentence-transformers' files say about pooling."""

import json

import pytest
from checkpoints import write_pooling

from jaxllm import weights
from jaxllm.errors import ConfigError

PLAIN = ("Transformer", "Pooling")
FLAGS = {
    "word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_lasttoken": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("pooling", "sequence"),
    [
        (FLAGS | {"pooling_mode_cls_token": True}, "cls"),
        (FLAGS | {"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        (FLAGS | {"pooling_mode_lasttoken": True}, "last"),
        ({"embedding_dimension": 384, "pooling_mode": "lasttoken"}, "last"),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_what_the_files_say(tmp_path, pooling, sequence, normalize):
    write_pooling(tmp_path, (*PLAIN, "Normalize") if normalize else PLAIN, pooling, {"max_seq_length": 128})
    assert weights.read_sentence_transformer(tmp_path) == weights.SentenceTransformer(sequence, normalize, 128)


def test_other_checkpoints_have_no_such_files(tmp_path):
    assert weights.read_sentence_transformer(tmp_path) is None


def test_the_length_may_be_left_out(tmp_path):
    write_pooling(tmp_path, PLAIN, {"pooling_mode": "cls"})
    assert weights.read_sentence_transformer(tmp_path) == weights.SentenceTransformer("cls", False, None)


@pytest.mark.parametrize(
    ("kinds", "pooling", "message"),
    [
        (
            (*PLAIN, "Dense", "Normalize"),
            {"pooling_mode": "cls"},
            "the steps Transformer, Pooling, Dense, Normalize are",
        ),
        (PLAIN, FLAGS | {"pooling_mode_max_tokens": True}, "pooling by max is not supported; only by cls, mean, lastt"),
        (PLAIN, FLAGS | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooling by cls and mean"),
        (PLAIN, {"pooling_mode": "mean", "include_prompt": False}, "include_prompt=false is not supported"),
    ],
)
def test_what_cannot_be_computed_is_named(tmp_path, kinds, pooling, message):
    write_pooling(tmp_path, kinds, pooling)
    with pytest.raises(ConfigError, match=message):
        weights.read_sentence_transformer(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    for text in ("[", '[{"idx": 0}]', "7", '[{"type": "models.Pooling", "path": 7}]', '[{"type": [], "path": ""}]'):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(ConfigError, match=r"modules\.json: not a list of steps"):
            weights.read_sentence_transformer(tmp_path)


@pytest.mark.parametrize("text", ["[]", "7", "null", '{"pooling_mode": []}', '{"pooling_mode": {"mean": 1}}', "{"])
def test_a_damaged_pooling_is_named(tmp_path, text):
    write_pooling(tmp_path, PLAIN, {})
    (path,) = tmp_path.glob("*ooling*/config.json")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json: "):
        weights.read_sentence_transformer(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"config\.json: not there"):
        weights.read_sentence_transformer(tmp_path)


def test_the_transformers_file_has_several_names(tmp_path):
    write_pooling(tmp_path, PLAIN, {"pooling_mode": "cls"})
    for name, length in (("xlm-roberta", 96), ("roberta", 64), ("bert", 48)):  # the latter go before the former
        inner = {"max_seq_length": length, "do_lower_case": True}
        (tmp_path / f"sentence_{name}_config.json").write_text(json.dumps(inner))
        found = weights.read_sentence_transformer(tmp_path)
        assert (found.max_seq_length, found.lower_case) == (length, True)


@pytest.mark.parametrize("length", [0, -1, 1.5, True, "12", [12]])
def test_a_length_that_is_none_is_named(tmp_path, length):
    write_pooling(tmp_path, PLAIN, {"pooling_mode": "cls"})
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(ConfigError, match=r"max_seq_length=.* must be positive, or null"):
        weights.read_sentence_transformer(tmp_path)
