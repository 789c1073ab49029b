"""The commands that run an engine, on a tiny model with random weights, as a user would call them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jaxllm import weights
from jaxllm.cli.command import app

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
POOLING = Path(__file__).parents[1] / "models" / "reference_pooling"
SMALL = ["--max-num-seqs", "2", "--max-num-batched-tokens", "32", "--block-size", "16", "--decode-steps", "1"]
DUMMY = ["--load-format", "dummy"]
LENGTHS = ["--num-prompts", "3", "--input-len", "9", "--output-len", "5"]


@pytest.fixture(scope="module")
def shape(tmp_path_factory) -> Path:
    """A directory with a bare config.json, and with room for compiled programs beside it."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def jaxllm(*line: object) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    return subprocess.run(
        [sys.executable, "-m", "jaxllm", *map(str, line)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment | {"COLUMNS": "200"},
    )


def bench(kind: str, shape: Path, *line: object) -> dict:
    """The JSON that a benchmark wrote."""
    output = shape.parent / f"{kind}.json"
    cache = [] if kind == "startup" else ["--compilation-cache-dir", shape.parent / "cache"]
    result = jaxllm("bench", kind, "--model", shape, *SMALL, *DUMMY, *cache, "--output-json", output, *line)
    assert result.returncode == 0, result.stderr
    document = json.loads(output.read_text())
    assert document["benchmark"] == kind
    assert document["config"]["max_num_seqs"] == 2
    return document


def test_throughput_counts_every_token(shape):
    (row,) = bench("throughput", shape, *LENGTHS, "--plot", shape.parent / "plot.png")["rows"]
    assert (row["workload"], row["requests"]) == ("random", 3)
    assert (row["prompt_tokens"], row["output_tokens"]) == (27, 15)
    assert row["seconds"] == min(row["all_seconds"])
    assert len(row["all_seconds"]) == 2
    assert row["output_tokens_per_s"] == pytest.approx(15 / row["seconds"])
    assert row["total_tokens_per_s"] == pytest.approx(42 / row["seconds"])
    assert (shape.parent / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_latency_of_a_batch(shape):
    rows = bench("latency", shape, "--batch-size", 2, "--input-len", 4, "--output-len", 6, "--num-iters", 3)["rows"]
    figures = {row["metric"]: row for row in rows}
    assert set(figures) == {"batch latency", "time to first token", "step"}
    assert 0 < figures["time to first token"]["median_ms"] < figures["batch latency"]["median_ms"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_serve_is_driven_over(protocol, shape):
    document = bench("serve", shape, *LENGTHS, "--protocol", protocol, "--max-concurrency", 2, "--goodput", "e2el:1e6")
    (row,) = document["rows"]
    assert (row["completed"], row["failed"]) == (3, 0)
    assert (row["total_input_tokens"], row["total_output_tokens"]) == (27, 15)
    assert row["request_goodput"] == pytest.approx(row["request_throughput"]) == pytest.approx(3 / row["duration"])
    assert 0 < row["mean_ttft_ms"] <= row["mean_e2el_ms"]
    if protocol == "grpc":  # without a tokenizer, the HTTP front has no text to send before the end
        assert row["mean_itl_ms"] > 0


def test_startup_is_faster_with_a_filled_cache(shape):
    cold, warm = bench("startup", shape)["rows"]
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    for row in (cold, warm):
        assert row["imports_s"] + row["programs_s"] < row["total_s"]
        assert row["first_token_s"] > 0
    assert (cold["loaded"], warm["compiled"]) == (0, 0)
    assert cold["compiled"] == warm["loaded"] > 0
    assert warm["lowering_s"] == 0 < cold["lowering_s"]


def test_plan_is_what_the_engine_does(shape):
    options = (
        "--model",
        shape,
        *SMALL,
        "--num-gpu-blocks-override",
        40,
        "--compilation-cache-dir",
        shape.parent / "cache",
    )
    result = jaxllm("plan", *options, "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["num_pages"] == 40
    # One layer: keys and values of one head of 8, in float32.
    assert plan["kv_bytes_per_token"] == 2 * 8 * 4
    assert plan["kv_bytes"] == 40 * 16 * 2 * 8 * 4
    assert plan["cache_tokens"] == 39 * 16
    assert plan["largest_batch"] == 39 * 16 // 128
    assert plan["programs"]
    assert all(program["flops"] > 0 for program in plan["programs"])
    table = jaxllm("plan", *options, "--no-programs").stdout
    assert "40 pages of 16 tokens" in table
    assert "KV cache per token" in table


def test_a_model_without_a_cache_is_planned_without_one():
    result = jaxllm("plan", "--model", POOLING / "bert-3-heads", "--max-num-batched-tokens", "64")
    assert result.returncode == 0, result.stderr
    assert "encode of 64 tokens, per token" in result.stdout
    assert "weights" in result.stdout
    for absent in ("cache", "state of requests", "at the longest context"):
        assert absent not in result.stdout


def test_a_converted_model_is_served_alike(shape, tmp_path):
    target = tmp_path / "converted"
    result = jaxllm("convert", shape, target, *DUMMY)
    assert result.returncode == 0, result.stderr
    assert str(target) in result.stdout
    plan = json.loads(jaxllm("plan", "--model", target, *SMALL, "--json", "--no-programs").stdout)
    assert plan["parameters"] == 64 * 16 * 2 + 16 * 3 + 16 * (16 + 8 + 8) + 16 * 16 + 3 * 16 * 32
    again = jaxllm("convert", shape, target, *DUMMY)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_an_interrupted_conversion_leaves_nothing(shape, tmp_path, monkeypatch):
    target, written = tmp_path / "converted", []

    def save(model: object, config: dict, source: Path, directory: Path) -> None:
        (directory / "half").mkdir()
        signal.raise_signal(signal.SIGINT)  # as Ctrl-C
        written.append(directory)  # its threads are not cut off

    monkeypatch.setattr(weights, "save_orbax", save)
    result = CliRunner().invoke(app, ["convert", str(shape), str(target), *DUMMY])
    assert (result.exit_code, written) == (130, [target])
    assert not target.exists()


def test_random_prompts_leave_room_for_their_outputs(shape):
    (row,) = bench("throughput", shape, "--num-prompts", "2", "--output-len", "5")["rows"]
    assert (row["prompt_tokens"], row["output_tokens"]) == (2 * (128 - 5), 2 * 5)


def test_what_cannot_be_is_told_before_anything_runs(shape):
    for line, message in (
        (["--workload", "single", "--workload", "tiny"], "workload='tiny': must be one of"),
        (["--workload", "single", "--dataset-path", "x.json"], "give one of them"),
        (["--plot", "picture.jpg"], "name a .png file"),
        (["--dataset-path", "none.json"], "no tokenizer"),
    ):
        result = jaxllm("bench", "throughput", "--model", shape, *SMALL, *DUMMY, *line)
        assert result.returncode == 2
        assert message in result.stderr
    result = jaxllm("bench", "serve", "--target", "grpc://127.0.0.1:1", "--max-num-seqs", "2")
    assert result.returncode == 2
    assert "max_num_seqs: has no effect" in result.stderr
    result = jaxllm("bench", "serve", "--target", "http://127.0.0.1:1")
    assert result.returncode == 2
    assert "is the server up?" in result.stderr


def test_structured_answers_are_compared_with_free_ones(tmp_path):
    """The model's vocabulary is not the tokenizer's: that of the shape, with what the demo model's tokens spell."""
    wide = tmp_path / "wide"
    wide.mkdir()
    (wide / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 300}))
    tokenizer = Path(__file__).parents[2] / "jaxllm" / "demo_model"
    free, held = bench("throughput", wide, *LENGTHS, "--structured", "--tokenizer", tokenizer)["rows"]
    assert (free["workload"], held["workload"]) == ("random", "random, structured")
    assert free["output_tokens"] == held["output_tokens"] == 15, "no answer is at its end before"
    assert held["share_of_free"] == pytest.approx(held["output_tokens_per_s"] / free["output_tokens_per_s"])


def test_what_cannot_be_written_is_told_before_anything_runs(shape, tmp_path):
    target = tmp_path / "none" / "figures.json"
    for option in ("--output-json", "--plot"):
        result = jaxllm("bench", "latency", "--model", shape, *SMALL, *DUMMY, option, target.with_suffix(".png"))
        assert result.returncode == 2
        assert "cannot be written" in " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr
    file = tmp_path / "file"
    file.touch()
    result = jaxllm("convert", shape, file / "converted", "--load-format", "dummy")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "Not a directory" in result.stderr
    result = jaxllm("convert", "qwen3-0.6b", tmp_path / "converted")
    assert "bare shape without weights" in result.stderr
    assert not (tmp_path / "converted").exists()


def test_processors_are_named_from_where_one_stands(shape, tmp_path):
    """By an installed command too, which, as python -P does, looks in no current directory of its own."""
    root = Path(__file__).parents[2]
    shutil.copyfile(root / "scripts" / "damp_repeats.py", tmp_path / "mine.py")
    line = ["plan", "--model", str(shape), *map(str, (*SMALL, *DUMMY)), "--logits-processor"]
    for name, returncode in (("mine:Damp", 0), ("others:Damp", 2)):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "jaxllm", *line, name],
            cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
        )  # fmt: skip
        assert done.returncode == returncode, done.stderr
