"""Workloads: the fixed table, random lengths within their range, ShareGPT files."""

import json
from dataclasses import replace

import pytest

from jaxllm.bench import shapes
from jaxllm.bench.shapes import model_directory, shape_names
from jaxllm.bench.workloads import WORKLOADS, Workload, check_fit, fixed, named, random_lengths, share_gpt
from jaxllm.errors import ConfigError
from tests.engine.echo_runner import echo_engine


def test_fixed_table():
    assert WORKLOADS["decode64"] == Workload(num_requests=64, num_prompt=128, num_output=256)
    prompts = fixed(WORKLOADS["batch8"], vocab_size=512, seed=1)
    assert len(prompts) == 8
    assert {(len(p.token_ids), p.num_output) for p in prompts} == {(1024, 128)}
    assert all(100 <= token < 512 for p in prompts for token in p.token_ids)
    assert prompts == fixed(WORKLOADS["batch8"], vocab_size=512, seed=1)
    assert prompts != fixed(WORKLOADS["batch8"], vocab_size=512, seed=2)


def test_names_keep_the_tables_order():
    assert list(named(["long", "single"])) == ["single", "long"]
    assert list(named(["all"])) == list(WORKLOADS)
    with pytest.raises(ConfigError, match="workload='decode65'"):
        named(["decode65"])


def test_random_lengths_stay_in_range():
    prompts = random_lengths(200, 100, 50, vocab_size=64, seed=0, range_ratio=0.5)
    prompt_lengths = {len(p.token_ids) for p in prompts}
    output_lengths = {p.num_output for p in prompts}
    assert min(prompt_lengths) >= 50
    assert max(prompt_lengths) <= 150
    assert min(output_lengths) >= 25
    assert max(output_lengths) <= 75
    assert len(prompt_lengths) > 40
    assert {len(p.token_ids) for p in random_lengths(5, 7, 1, vocab_size=64, seed=0)} == {7}
    assert all(p.num_output >= 1 for p in random_lengths(50, 1, 1, vocab_size=64, seed=0, range_ratio=0.9))
    with pytest.raises(ConfigError, match="range_ratio"):
        random_lengths(1, 1, 1, vocab_size=64, seed=0, range_ratio=1.0)


def test_prompts_must_leave_room_for_their_outputs():
    info = echo_engine().info  # a context of 128
    check_fit(random_lengths(3, 100, 28, vocab_size=64, seed=0), info)
    with pytest.raises(ConfigError, match=r"a prompt of 100 tokens and an output of 29 do not fit .* context of 128"):
        check_fit(random_lengths(3, 100, 29, vocab_size=64, seed=0), info)
    check_fit(random_lengths(3, 100, 29, vocab_size=64, seed=0), replace(info, decoder_start=(1,)))


def test_shapes_are_whole_configurations(tmp_path, monkeypatch):
    assert shape_names() == [
        "bert-large", "deepseek-v2-lite", "gemma2-9b", "gpt-oss-20b", "jamba-8-layers", "llama-8b", "mamba2-2.7b",
        "qwen3-0.6b", "qwen3-30b-a3b", "t5-large",
    ]  # fmt: skip
    for name in shape_names():
        config = json.loads((shapes.DIRECTORY / name / "config.json").read_text())
        assert config["architectures"]
        assert config["vocab_size"] > 30_000
    assert model_directory("llama-8b") == str(shapes.DIRECTORY / "llama-8b")
    assert model_directory("elsewhere") == "elsewhere"
    (tmp_path / "llama-8b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_directory("llama-8b") == "llama-8b"


def conversation(question: str, answer: str) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def encode(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def test_share_gpt_takes_the_first_two_turns(tmp_path):
    path = tmp_path / "data.json"
    usable = [conversation("one two three four", "a b c d e " * n) for n in (1, 2, 3)]
    path.write_text(json.dumps([*usable, conversation("hi", "too short"), {"conversations": []}]))
    prompts = share_gpt(path, 3, encode, seed=0, num_output=None, max_len=1000)
    assert sorted(p.num_output for p in prompts) == [5, 10, 15]
    assert all(p.token_ids == [3, 3, 5, 4] for p in prompts)
    assert [p.num_output for p in share_gpt(path, 2, encode, seed=0, num_output=7, max_len=1000)] == [7, 7]
    with pytest.raises(ConfigError, match="holds 2 usable conversations of 3"):
        share_gpt(path, 3, encode, seed=0, num_output=None, max_len=15)


@pytest.mark.parametrize("content", ["{", '[{"text": 1}]', '{"conversations": 3}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="not a ShareGPT file"):
        share_gpt(path, 1, encode, seed=0, num_output=None, max_len=100)
    with pytest.raises(ConfigError, match="No such file"):
        share_gpt(tmp_path / "none.json", 1, encode, seed=0, num_output=None, max_len=100)
