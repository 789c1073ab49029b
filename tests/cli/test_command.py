"""Options made from configuration fields; errors as one line; nothing heavy behind --help."""

import dataclasses
import json
import subprocess
import sys
import time
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from jaxllm import __version__
from jaxllm.cli.command import TABLE_COLUMNS, Given, arguments, command
from jaxllm.cli.generate import WITHOUT
from jaxllm.config import EngineConfig, ServerConfig, flag
from jaxllm.core import SamplingParams
from jaxllm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A configuration with every kind of field.

    Attributes:
        documented: told by the docstring,
            on two lines.
    """

    some_name: str = flag("x", "A name.")
    maybe_count: int | None = flag(None, "A count.")
    ratio: float = flag(0.5, "A ratio.")
    enabled: bool = flag(True, "Whether.")
    kind: Literal["a", "b"] = flag("a", "Which.")
    steps: tuple[int, ...] | None = flag(None, "Some integers.")
    words: tuple[str, ...] = flag((), "Some words.")
    documented: int = 3
    front_port: int = flag(1, "A port.", also="--port")


def make_app(**options: Any) -> tuple[typer.Typer, list[Given]]:
    app = typer.Typer()
    received: list[Given] = []

    @command(app, example=Example, **options)
    def run(example: Given, own: int = 1) -> None:
        """Does it."""
        if own == 99:
            raise ConfigError("own=99: is not liked; try 98")
        received.append(example)

    return app, received


def invoke(app: typer.Typer, *line: str) -> Any:
    return CliRunner().invoke(app, line, env={"COLUMNS": "200", "TERM": "dumb"})


def test_only_what_is_named_is_given():
    app, received = make_app()
    assert invoke(app).exit_code == 0
    line = "--some-name y --maybe-count 4 --ratio 0.25 --no-enabled --kind b --steps 1,8 --words p --words q"
    assert invoke(app, *line.split()).exit_code == 0
    everything = {
        "some_name": "y", "maybe_count": 4, "ratio": 0.25, "enabled": False, "kind": "b", "steps": (1, 8),
        "words": ("p", "q"),
    }  # fmt: skip
    assert received == [{}, everything]


def test_an_option_may_have_another_name():
    app, received = make_app()
    for name in ("--port", "--front-port"):
        assert invoke(app, name, "5").exit_code == 0
    assert received == [{"front_port": 5}] * 2


def test_a_file_may_call_it_by_that_name_and_variables_may_not(tmp_path, monkeypatch):
    """Kubernetes sets JAXLLM_PORT to an address where a service is called jaxllm."""
    monkeypatch.setenv("JAXLLM_PORT", "tcp://10.0.0.1:8000")
    app, received = make_app()
    path = tmp_path / "serve.yaml"
    path.write_text("port: 5\nword: a")
    assert invoke(app, "--config", str(path)).exit_code == 0
    assert received == [{"front_port": 5, "words": ("a",)}]
    path.write_text("port: 5\nfront-port: 6")
    assert "'front-port' stands there twice" in invoke(app, "--config", str(path)).output


def test_arguments_is_the_inverse():
    app, received = make_app()
    given = {"some_name": "-y", "enabled": False, "steps": (1, 2), "words": ("a b", "c"), "ratio": 1e-3}
    silent = {"maybe_count": None, "kind": None}  # as a file that --show-config wrote has them
    assert invoke(app, *arguments(given | silent)).exit_code == 0
    assert arguments({"words": (), "steps": ()}) == []
    assert received == [given]


def test_a_command_may_have_defaults_and_a_choice_of_its_own():
    app, received = make_app(defaults={"maybe_count": 7}, only=("maybe_count", "ratio"))
    assert invoke(app).exit_code == 0
    assert invoke(app, "--maybe-count", "8").exit_code == 0
    assert received == [{"maybe_count": 7}, {"maybe_count": 8}]
    help_text = invoke(app, "--help").output
    assert "(default: 7)" in help_text
    assert "--some-name" not in help_text
    app, _ = make_app(without=("ratio",))
    assert "No such option" in invoke(app, "--ratio", "0.1").output


def test_help_comes_from_the_fields():
    app, _ = make_app()
    help_text = " ".join(invoke(app, "--help").output.split())
    for text in (
        "A name. (default: x)",
        "A count.",
        "Whether. (default: True)",
        "Told by the docstring, on two lines.",
    ):
        assert text in help_text


@pytest.mark.parametrize("line", [["--some-nam", "y"], ["--kind", "c"], ["--ratio", "much"], ["extra"]])
def test_mistakes_on_the_line_are_usage_errors(line):
    app, received = make_app()
    result = invoke(app, *line)
    assert result.exit_code == 2
    assert "Usage" in result.output
    assert not received


def test_our_errors_are_one_line_and_verbose_has_the_traceback():
    app, _ = make_app()
    result = invoke(app, "--own", "99")
    assert (result.exit_code, result.stderr) == (2, "error: own=99: is not liked; try 98\n")
    result = invoke(app, "--own", "99", "--verbose")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    result = invoke(app, "--steps", "1;8")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--steps '1;8'" in result.stderr


def test_a_field_without_help_is_refused():
    @dataclasses.dataclass
    class Silent:
        field: int = 1

    with pytest.raises(TypeError, match=r"Silent\.field has no help text"):

        @command(typer.Typer(), silent=Silent)
        def run(silent: Given) -> None: ...


def jaxllm(*line: str, columns: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxllm", *line],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"COLUMNS": str(columns), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.parametrize("columns", [80, TABLE_COLUMNS])
@pytest.mark.parametrize(
    ("line", "configs"),
    [
        (["generate"], [EngineConfig, SamplingParams]),
        (["serve"], [EngineConfig, ServerConfig]),
        (["plan"], [EngineConfig]),
        (["bench", "throughput"], [EngineConfig]),
        (["bench", "latency"], [EngineConfig]),
        (["bench", "serve"], [EngineConfig]),
        (["bench", "startup"], [EngineConfig]),
    ],
)
def test_every_field_is_an_option_with_help(line, configs, columns):
    """Named in full, however narrow the terminal is."""
    result = jaxllm(*line, "--help", columns=columns)
    assert result.returncode == 0, result.stderr
    for config in configs:
        for field in dataclasses.fields(config):
            if line == ["generate"] and field.name in WITHOUT:
                continue
            assert "--" + field.name.replace("_", "-") + " " in result.stdout.replace("/", " ").replace(",", " ")


def test_help_is_quick_and_imports_nothing_heavy():
    probe = (
        "import sys, jaxllm.cli; heavy = {'jax', 'flax', 'transformers', 'grpc', 'fastapi'} "
        "& set(sys.modules); print(sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert jaxllm("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2.0  # 0.4 on an idle machine


def test_errors_reach_the_shell():
    result = jaxllm("plan", "--block-size", "48")
    assert (result.returncode, result.stderr) == (2, "error: block_size=48: the kernels need a power of two; try 64\n")
    result = jaxllm("plan", "--blok-size", "48")
    assert result.returncode == 2
    assert "No such option" in result.stderr
    result = jaxllm("generate", "hi", "--model", "qwen3-0.6b")
    assert result.returncode == 2
    assert "--load-format dummy" in result.stderr


def test_version():
    assert jaxllm("--version").stdout.strip() == __version__


def test_models_lists_the_registry():
    from jaxllm.models.registry import ENCODER_DECODERS, MODELS, POOLING_MODELS

    rows = {row["architecture"]: row for row in json.loads(jaxllm("models", "--json").stdout)}
    assert rows.keys() == MODELS.keys() | ENCODER_DECODERS.keys() | POOLING_MODELS.keys()
    fields = {"architecture", "model_type", "family", "task", "blocks", "caches", "features"}
    assert all(row.keys() == fields for row in rows.values())
    table = jaxllm("models").stdout
    assert all(name in table for name in rows)
