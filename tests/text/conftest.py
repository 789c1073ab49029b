"""Real tokenizers, unpacked once, and the texts they are tried on."""

import gzip
import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from vocabularies import VECTORS

from jaxllm.server.text import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_directory(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    with tarfile.open(material / "tokenizers.tar.xz") as archive:
        archive.extractall(root, filter="data")
    packed = root / "tokenizers/deepseek-r1/tokenizer.json.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    # These two come without a tokenizer.json: a checkpoint's config.json then says which tokenizer it is.
    for name, model_type in (("gpt2", "gpt2"), ("bert-base-uncased", "bert")):
        (root / "tokenizers" / name / "config.json").write_text(json.dumps({"model_type": model_type}))

    def find(name: str) -> Path:
        return material / "derived/stories260K-hf" if name == "stories260K" else root / "tokenizers" / name

    return find


@pytest.fixture(scope="session")
def load_tokenizer(tokenizer_directory: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    return cache(lambda name: Tokenizer.load(tokenizer_directory(name)))


@pytest.fixture(scope="session")
def vectors(material: Path) -> Callable[[str], list[tuple[str, list[int]]]]:
    def read(name: str) -> list[tuple[str, list[int]]]:
        stem = material / "tokenizer_vectors/llama.cpp" / f"ggml-vocab-{VECTORS.get(name, 'gpt-2')}.gguf"
        texts = stem.with_suffix(".gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        ids = stem.with_suffix(".gguf.out").read_text(encoding="utf-8").split("\n")
        return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, ids, strict=False)]

    return read
