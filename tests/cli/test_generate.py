"""`jaxllm generate` on a trained model, as it is and converted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--max-num-seqs", "1", "--max-num-batched-tokens", "16", "--max-model-len", "128", "--decode-steps", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def jaxllm(*line: object, given: str | None = None) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    return subprocess.run(
        [sys.executable, "-m", "jaxllm", *map(str, line)], input=given, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def test_the_converted_model_says_what_the_checkpoint_says(material: Path, cache: Path, tmp_path: Path) -> None:
    stories, converted = material / "derived/stories260K-hf", tmp_path / "converted"
    cases = json.loads((material / "derived/goldens/dev/stories260K.json").read_text())["cases"]
    case = next(case for case in cases if min(step["margin"] for step in case["steps"]) > 0.01)
    result = jaxllm("convert", stories, converted, "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    assert not list(converted.rglob("*.safetensors"))
    options = (
        *SMALL, "--compilation-cache-dir", cache, "--temperature", 0, "--ignore-eos",
        "--max-tokens", len(case["greedy_ids"]),
    )  # fmt: skip
    for model, prompt, given in ((stories, case["prompt"], None), (converted, "-", case["prompt"])):
        result = jaxllm("generate", "--model", model, *options, prompt, given=given)
        assert result.returncode == 0, result.stderr
        assert result.stdout.rstrip("\n") == case["text"].rstrip("\n")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["--top-p", "0"], "top_p=0.0: must be in (0, 1]"),
        (["--max-tokens", "0"], "max_tokens=0: must be at least 1"),
        (["--temperature", "nan"], "temperature=nan: must be a finite number"),
        (["--chat"], "no chat template"),
        (["--max-model-len", "100000"], "max_model_len=100000: the model is made for"),
        (["--num-gpu-blocks-override", "2"], "the KV cache holds 64 tokens (2 pages of 64"),
        (["--tokenizer", "/nowhere"], "no tokenizer in '/nowhere'"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_what_cannot_be_is_one_line(line: list[str], says: str, material: Path, cache: Path) -> None:
    model = material / "derived/stories260K-hf"
    result = jaxllm("generate", "--model", model, *SMALL, "--compilation-cache-dir", cache, "hi", *line)
    assert (result.returncode, result.stdout) == (2, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
