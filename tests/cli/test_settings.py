"""Options from the line, the environment and a file: which goes before which, what is refused, what is shown."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.cli.settings import Setting, from_text, resolve
from jaxllm.config import EngineConfig, ServerConfig
from jaxllm.errors import ConfigError

FIELDS: dict[str, Any] = {
    "some_name": str, "count": int, "ratio": float, "enabled": bool, "kind": Literal["a", "b"],
    "steps": tuple[int, ...], "words": tuple[str, ...], "defaults": Mapping[str, Any],
}  # fmt: skip
VALUES = {
    "some_name": st.text(st.characters(codec="ascii", exclude_categories=("C",))), "count": st.integers(),
    "ratio": st.floats(allow_nan=False), "enabled": st.booleans(), "kind": st.sampled_from(["a", "b"]),
    "steps": st.lists(st.integers(), min_size=1).map(tuple),
    "words": st.lists(st.text("abc*/:", min_size=1), min_size=1).map(tuple),
    "defaults": st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans())),
}  # fmt: skip
GIVEN = st.fixed_dictionaries({}, optional=VALUES)


def as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


@given(GIVEN, GIVEN, GIVEN, st.booleans())
def test_line_before_environment_before_file(tmp_path_factory, line, environment, file, dashes):
    path = tmp_path_factory.mktemp("options") / "serve.yaml"
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in file.items()}
    path.write_text(yaml.safe_dump({n.replace("_", "-") if dashes else n: v for n, v in plain.items()}), "utf-8")
    environ = {f"JAXLLM_{name.upper()}": as_text(value) for name, value in environment.items()}
    expected = {
        **{name: Setting(value, str(path)) for name, value in file.items()},
        **{name: Setting(value, f"JAXLLM_{name.upper()}") for name, value in environment.items()},
        **{name: Setting(value, "--" + name.replace("_", "-")) for name, value in line.items()},
    }
    assert resolve(FIELDS, line, environ, str(path)) == expected


@pytest.mark.parametrize(("content", "message"), [
    ("cuont: 3", r"unknown option 'cuont'; did you mean 'count'\?"),
    ("xyzzy: 3", "unknown option 'xyzzy'; .*--show-config"),
    ("count: 3\ncount: 4", "twice"),
    ("some-name: x\nsome_name: y", "twice"),
    ("count: '3'", "count: must be an integer, not str"),
    ("count: true", "count: must be an integer, not bool"),
    ("count: 1.5", "count: must be an integer, not float"),
    ("some_name: 3", "some_name: must be a string .*in quotes.*, not int"),
    ("enabled: 1", "enabled: must be true or false"),
    ("steps: [1, x]", "steps: must be an integer, or a list of such"),
    ("defaults: [1]", "defaults: must be a mapping"),
    ("- count", "must hold options"),
    ("3: 4", "must hold options"),
    ("count: [", "no YAML"),
])  # fmt: skip
def test_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve(FIELDS, {}, {}, str(path))


def test_a_secret_of_the_wrong_type_is_not_told(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("words: [74123]")
    with pytest.raises(ConfigError) as raised:
        resolve(FIELDS, {}, {}, str(path))
    assert "74123" not in str(raised.value)


def test_a_file_may_hold_what_other_commands_take(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("count: 3\nport: 8000")
    assert resolve(FIELDS, {}, {}, str(path), known=["port"]) == {"count": Setting(3, str(path))}
    path.write_text("")
    assert resolve(FIELDS, {}, {}, str(path)) == {}
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(FIELDS, {}, {}, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("name", "text"), [
    ("count", "many"), ("count", ""), ("ratio", "half"), ("enabled", "maybe"), ("steps", "1;2"), ("defaults", "{"),
    ("defaults", "[1]"),
])  # fmt: skip
def test_variables_that_are_refused(name, text):
    with pytest.raises(ConfigError, match=f"JAXLLM_{name.upper()}"):
        resolve(FIELDS, {}, {f"JAXLLM_{name.upper()}": text}, None)


@pytest.mark.parametrize("text", ["1", "true", "Yes", "ON"])
def test_truths(text):
    assert from_text("x", bool, text) is True


def test_a_misspelt_variable_is_told_of_and_others_are_left_alone(caplog):
    with caplog.at_level(logging.WARNING):
        resolve(FIELDS, {}, {"JAXLLM_SOME_NAMES": "x", "JAXLLM_TEST_MATERIAL": "y", "OTHER_COUNT": "1"}, None)
    (record,) = caplog.records
    assert record.getMessage() == "JAXLLM_SOME_NAMES is set and no option; did you mean JAXLLM_SOME_NAME?"


def jaxllm(*line: str, **environ: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAXLLM")}
    return subprocess.run(
        [sys.executable, "-m", "jaxllm", *line],
        capture_output=True, text=True, timeout=120, check=False, env={**kept, **environ},
    )  # fmt: skip


def test_show_config_says_who_said_what(tmp_path: Path):
    path = tmp_path / "serve.yaml"
    path.write_text("max-model-len: 512\nmax-num-seqs: 8\nhost: 0.0.0.0\ndecode-steps: [1, 4]\n")
    line = ("serve", "--show-config", "--max-num-seqs", "2", "--served-model-name", "a", "--served-model-name", "b")
    environ = {"JAXLLM_CONFIG": str(path), "JAXLLM_HOST": "::1", "JAXLLM_API_KEY": "hush-hush,hush", "JAXLLM_SEED": "5"}
    shown = jaxllm(*line, **environ)
    assert shown.returncode == 0, shown.stderr
    assert "hush" not in shown.stdout + shown.stderr
    lines = {text.lstrip("# ").partition(":")[0]: text for text in shown.stdout.splitlines()}
    names = {f.replace("_", "-") for config in (EngineConfig, ServerConfig) for f in config.__dataclass_fields__}
    assert lines.keys() == names
    assert lines["max-num-seqs"] == "max-num-seqs: 2  # --max-num-seqs"
    assert lines["max-model-len"] == f"max-model-len: 512  # {path}"
    assert lines["decode-steps"] == f"decode-steps: [1, 4]  # {path}"
    assert lines["host"] == 'host: "::1"  # JAXLLM_HOST'
    assert lines["seed"] == "seed: 5  # JAXLLM_SEED"
    assert lines["served-model-name"] == 'served-model-name: ["a", "b"]  # --served-model-name'
    assert lines["block-size"] == "block-size: 64  # default"
    assert lines["api-key"] == "# api-key: 2 hidden  # JAXLLM_API_KEY"
    # What is shown is a file that means the same.
    again = tmp_path / "again.yaml"
    again.write_text(shown.stdout)
    values = yaml.safe_load(jaxllm("serve", "--show-config", "--config", str(again)).stdout)
    assert values.pop("api-key") == []
    assert values == yaml.safe_load(shown.stdout)


def test_mistakes_reach_the_shell(tmp_path: Path):
    path = tmp_path / "serve.yaml"
    path.write_text("max-model-length: 512")
    done = jaxllm("plan", "--config", str(path))
    assert (done.returncode, done.stderr) == (
        2, f"error: {path}: unknown option 'max-model-length'; did you mean 'max_model_len'?\n"
    )  # fmt: skip
    done = jaxllm("serve", "--show-config", JAXLLM_BLOCK_SIZE="48")
    assert (done.returncode, done.stderr) == (2, "error: block_size=48: the kernels need a power of two; try 64\n")
