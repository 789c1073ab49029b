"""Tokenizers of every kind: ids as recorded elsewhere, bytes per token that add up to the text."""

import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vocabularies import TOKENIZERS, VECTORS

import jaxllm
from jaxllm.errors import ConfigError
from jaxllm.server.text import Tokenizer
from jaxllm.server.text import tokenizer as tokenizer_module

Load = Callable[[str], Tokenizer]
Vectors = Callable[[str], list[tuple[str, list[int]]]]


@pytest.mark.parametrize("name", VECTORS)
def test_ids_of_the_recorded_vectors(name: str, load_tokenizer: Load, vectors: Vectors) -> None:
    tokenizer = load_tokenizer(name)
    for text, expected in vectors(name):
        assert tokenizer.encode(text, add_special_tokens=False) == expected, repr(text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_of_tokens_add_up_to_the_text(name: str, load_tokenizer: Load, vectors: Vectors) -> None:
    """Behind another token, so that a tokenizer which strips the first space of a text has none to strip."""
    tokenizer = load_tokenizer(name)
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = tokenizer.decode(anchor)
    for text, _ in vectors(name):
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(tokenizer.token_bytes(i) for i in ids)
        assert joined.decode("utf-8") == tokenizer.decode(anchor + ids, False)[len(before) :], repr(text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_whole_character_token_decodes_to_its_bytes(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before = tokenizer.decode(anchor)
    ids = range(tokenizer.vocab_size)
    for i in ids if len(ids) < 2000 else random.Random(0).sample(ids, 2000):
        assert tokenizer.token_text(i) == tokenizer.decode([*anchor, i], False)[len(before) :]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_can_be_left_out(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode("a b")
    plain = tokenizer.encode("a b", add_special_tokens=False)
    visible = tokenizer.pieces(skip_special_tokens=True)
    assert b"".join(visible[i] for i in ids) == b"".join(map(tokenizer.token_bytes, plain))
    assert tokenizer.decode(ids) == tokenizer.decode(plain)


def test_encoding_is_that_of_transformers(tokenizer_directory: Callable[[str], Path], load_tokenizer: Load) -> None:
    from transformers import AutoTokenizer

    for name in ("qwen3-8b", "t5-small", "stories260K"):
        reference = AutoTokenizer.from_pretrained(tokenizer_directory(name))
        text = "Once upon a time, 世界 🙂"
        for special in (True, False):
            assert load_tokenizer(name).encode(text, special) == reference.encode(text, add_special_tokens=special)


@pytest.mark.parametrize("how", ["encode", "encode_many", "encode_pairs"])
def test_other_threads_get_on_while_a_long_text_is_encoded(how: str) -> None:
    text = "Once upon a time there was a cat. " * 15_000
    tokenizer = Tokenizer.load(Path(jaxllm.__file__).parent / "demo_model")
    encode: Callable[[], Any] = {
        "encode": lambda: tokenizer.encode(text), "encode_many": lambda: tokenizer.encode_many([text], 9),
        "encode_pairs": lambda: tokenizer.encode_pairs([(text, text)], 9),
    }[how]  # fmt: skip
    thread = threading.Thread(target=encode)
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20  # one or two where the lock is kept


def test_many_texts_are_encoded_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(Path(jaxllm.__file__).parent / "demo_model")
    texts = ["Once", "", "upon a time " * 9, "there was", "a cat."]
    pairs = list(itertools.product(texts, texts))
    monkeypatch.setattr(tokenizer_module, "_BATCH_CHARACTERS", 9)
    encoded: list[int] = []
    encode = tokenizer._encoded
    monkeypatch.setattr(tokenizer, "_encoded", lambda batch: (encoded.append(len(batch)), encode(batch))[1])
    for most in (None, 4):
        assert tokenizer.encode_many(texts, most) == [tokenizer.encode_many([text], most)[0] for text in texts]
        assert tokenizer.encode_pairs(pairs, most) == [tokenizer.encode_pairs([pair], most)[0] for pair in pairs]
    assert 1 < max(encoded) < len(texts)
    assert tokenizer.encode_many([]) == tokenizer.encode_pairs([]) == []


def test_an_id_without_a_token_stands_for_nothing(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("qwen3-8b")
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == ""


def test_half_a_character_is_a_replacement_character(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("gpt2")
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    assert tokenizer.token_text(ids[0]).endswith("\ufffd")
    assert b"".join(map(tokenizer.token_bytes, ids)) == "🙂".encode()


def test_a_directory_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer in .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="no tokenizer"):
        Tokenizer.load("Qwen/Qwen3-0.6B")  # a hub's name is no directory, and nothing is fetched


def test_a_broken_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_texts_begin_and_end_as_tokenizer_config_asks(
    tokenizer_directory: Callable[[str], Path], load_tokenizer: Load, tmp_path: Path
) -> None:
    """Where tokenizer.json adds nothing (DeepSeek), or one of the two (E5's embeddings are of the token it lacks)."""
    deepseek = load_tokenizer("deepseek-r1")
    bare = deepseek.encode("Hello world", add_special_tokens=False)
    assert deepseek.encode("Hello world") == [0, *bare]
    assert deepseek.encode("") == [0]
    source = tokenizer_directory("phi-3-mini")
    for flags in ((None, None), (True, None), (None, True), (True, True), (False, False)):
        for own in ([], ["<s>"]):
            file = json.loads((source / "tokenizer.json").read_text())
            template = [{"SpecialToken": {"id": token, "type_id": 0}} for token in own]
            file["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [*template, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [*template, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [1], "tokens": [token]} for token in own},
            }
            config = json.loads((source / "tokenizer_config.json").read_text())
            config |= dict(zip(("add_bos_token", "add_eos_token"), flags, strict=True)) | {
                "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
            }  # fmt: skip
            (tmp_path / "tokenizer.json").write_text(json.dumps(file))
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
            tokenizer = Tokenizer.load(tmp_path)
            bare = tokenizer.encode("Hello world", add_special_tokens=False)
            begin, end = [1] * (flags[0] is True or bool(own)), [2] * (flags[1] is True)
            assert tokenizer.encode("Hello world") == [*begin, *bare, *end]
            if end:
                assert tokenizer.encode_pairs([("Hello world", "Hello world")])[0][0].count(2) == 2
