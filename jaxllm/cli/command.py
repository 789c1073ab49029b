"""Turns a function into a command: options made from configuration fields, errors as one line.

    @command(app, engine=EngineConfig)
    def plan(engine: Given, as_json: bool = False) -> None: ...

gives `jaxllm plan` one option per field of `EngineConfig`. The field's help text is its metadata's, or its line
in the class docstring's `Attributes:`; the command receives a dict of the fields the user named, on the line, in the
environment or in a file (settings.py), so that what was not said stays the configuration's own default.
"""

import dataclasses
import functools
import inspect
import json
import logging
import os
import re
import shutil
import sys
import traceback
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxllm.bench.shapes import model_directory
from jaxllm.cli import settings
from jaxllm.config import EngineConfig, ServerConfig
from jaxllm.errors import ConfigError, JaxllmError

if TYPE_CHECKING:
    from rich.table import Table


class Given(dict[str, Any]):
    """The fields of one configuration that the user named. origins: where, by field."""

    def __init__(self, *values: Any):
        super().__init__(*values)
        self.origins: dict[str, str] = {}


Command = Callable[..., None]

TABLE_COLUMNS = 120
"""Of a terminal; with fewer, rich's tables of options cut the names off, and help is plain text instead."""

UNBOUNDED = 1000
"""Columns of a table in a file or a pipe."""

app = typer.Typer(
    name="jaxllm",
    no_args_is_help=True,
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= TABLE_COLUMNS else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CONFIG = Annotated[
    str | None,
    typer.Option(
        "--config",
        envvar=settings.FILE_VARIABLE,
        show_envvar=False,
        help="A YAML file of options; the environment (JAXLLM_MAX_MODEL_LEN, ...) goes before it, flags before both.",
    ),
]
VERBOSE = Annotated[bool, typer.Option("--verbose", help="Log details, and show the traceback of an error.")]


def command(
    app: typer.Typer,
    name: str | None = None,
    *,
    defaults: dict[str, Any] | None = None,
    only: tuple[str, ...] | None = None,
    without: tuple[str, ...] = (),
    log_level: int = logging.WARNING,
    **groups: type,
) -> Callable[[Command], Command]:
    """Register a function as a command of `app`.

    name: the command's; the function's by default.
    defaults: fields whose default in this command differs from the configuration's.
    only, without: the fields to make options of, and not to; all of them by default.
    log_level: what is logged on a terminal; elsewhere at least INFO, with --verbose DEBUG.
    groups: parameter name to the frozen dataclass whose fields it holds. A field that two groups share
        belongs to the later one; a parameter of the function's own shadows both.
    """
    defaults = defaults or {}

    def register(function: Command) -> Command:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name not in groups]
        owner = {
            field.name: group
            for group, config in groups.items()
            for field in dataclasses.fields(config)
            if (only is None or field.name in only) and field.name not in without
        }
        for parameter in own:
            owner.pop(parameter.name, None)
        parameters = list(own)
        for group, config in groups.items():
            parameters += [
                _option(config, field, group, defaults.get(field.name))
                for field in dataclasses.fields(config)
                if owner.get(field.name) == group
            ]
        parameters.append(inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=CONFIG))
        parameters.append(
            inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VERBOSE)
        )

        @functools.wraps(function)
        def run(**values: Any) -> None:
            verbose = values.pop("verbose")
            _configure_logging(logging.DEBUG if verbose else log_level)
            try:
                file = values.pop("config")
                named = {name: values.pop(name) for name in owner}
                function(**values, **_given(groups, owner, named, file, defaults))
            except JaxllmError as error:
                if verbose:
                    traceback.print_exc()
                print_error(str(error))
                raise typer.Exit(2) from None
            except BrokenPipeError:
                raise
            except OSError as error:  # a disk that is full, a folder that is missing or another's
                if verbose:
                    traceback.print_exc()
                print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
                raise typer.Exit(2) from None

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return app.command(name or function.__name__)(run)

    return register


def _given(
    groups: dict[str, type], owner: dict[str, str], named: dict[str, Any], file: str | None, defaults: dict[str, Any]
) -> dict[str, Given]:
    """What each group is given, of what typer read, the environment and the file. owner: of each field its group."""
    hints = {name: settings.field_types(groups[group])[name] for name, group in owner.items()}
    flags = {name: _parsed(name, hints[name], value) for name, value in named.items()}
    flags = {name: value for name, value in flags.items() if value is not None}
    # One file may serve several commands: what is of a server's is no mistake in another's.
    configs = dict.fromkeys((EngineConfig, ServerConfig, *groups.values()))
    fields = [(config, field) for config in configs for field in dataclasses.fields(config)]
    known = {field.name for _, field in fields}
    others = {settings.field(flag): field.name for config, field in fields for flag in _other_options(config, field)}
    found = settings.resolve(hints, flags, os.environ, file, known, others)
    given = {group: Given() for group in groups}
    for name, group in owner.items():
        if name in found:
            given[group][name] = found[name].value
            given[group].origins[name] = found[name].origin
        elif name in defaults:
            given[group][name] = defaults[name]
    return given


def engine_config(given: Given, weights_needed: bool = True) -> EngineConfig:
    """The engine's configuration from its options. A bundled model shape may be named as the model."""
    config = EngineConfig(**given)
    directory = model_directory(config.model)
    if weights_needed and directory != config.model and config.load_format != "dummy":
        raise ConfigError(f"{config.model} is a bare shape without weights: add --load-format dummy to use random ones")
    return config.replace(model=directory)


def print_error(message: str) -> None:
    """One red line on standard error; plain where that is no terminal."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text(f"error: {message}", style="bold red"))


def print_table(table: "Table") -> None:
    """To standard output; in full where that is no terminal, whose width would cut figures off."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=UNBOUNDED)).print(table)


def arguments(given: dict[str, Any]) -> list[str]:
    """The command line that names these fields: the inverse of the options made here. What says nothing is left out."""
    line: list[str] = []
    for name, value in given.items():
        flag = settings.option(name)
        if value is None or value == ():
            continue
        if isinstance(value, dict):
            line += [flag, json.dumps(value)]
        elif isinstance(value, bool):
            line.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, tuple) and all(isinstance(item, int) for item in value):
            line += [flag, ",".join(str(item) for item in value)]
        elif isinstance(value, tuple):
            line += [part for item in value for part in (flag, item)]
        else:
            line += [flag, str(value)]
    return line


def _option(config: type, field: dataclasses.Field, group: str, default: Any) -> inspect.Parameter:
    """The typer parameter of one field. None stands for "not given"; the help shows the real default."""
    flag = settings.option(field.name)
    inner = settings.field_types(config)[field.name]
    declarations = [flag]
    metavar = None
    annotation: Any = inner
    if inner is bool:
        declarations = [f"{flag}/--no-{flag[2:]}"]
    elif typing.get_origin(inner) is tuple and typing.get_args(inner)[0] is int:
        annotation, metavar = str, "INT,..."
    elif settings.is_mapping(inner):
        annotation, metavar = str, "JSON"
    elif typing.get_origin(inner) is tuple:
        annotation, metavar = list[str], "TEXT"
    elif typing.get_origin(inner) is Literal:
        metavar = "CHOICE"  # the help text lists them
    elif inner not in (int, float, str):
        raise TypeError(f"{config.__name__}.{field.name}: no option can be made from {inner}")
    declarations += _other_options(config, field)
    if default is None:
        default = field.default
    info = typer.Option(
        *declarations,
        help=_help(config, field) + ("" if default in (None, (), "") else f" (default: {default})"),
        metavar=metavar,
        show_default=False,
        rich_help_panel=f"{group.capitalize()} options",
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, info]
    )


def _other_options(config: type, field: dataclasses.Field) -> list[str]:
    """What else a field's option is called."""
    flag, hint = settings.option(field.name), settings.field_types(config)[field.name]
    texts = typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is str
    others = [flag[:-1]] if texts and flag.endswith("s") else []  # one at a time: --logits-processor for each
    return others + ([field.metadata["also"]] if field.metadata.get("also") else [])


def _help(config: type, field: dataclasses.Field) -> str:
    text = field.metadata.get("help") or attribute_docs(config).get(field.name)
    if not text:
        raise TypeError(f"{config.__name__}.{field.name} has no help text: add it where the field is defined")
    choices = typing.get_origin(settings.field_types(config)[field.name]) is Literal  # as they are to be written
    return text if choices else text[0].upper() + text[1:]


@functools.cache
def attribute_docs(config: type) -> dict[str, str]:
    """name: text from the `Attributes:` section of a class docstring."""
    section = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")[2]
    pattern = re.compile(r"^    (\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in pattern.findall(section)}


def _parsed(name: str, hint: Any, value: Any) -> Any:
    """The field's value from what typer read; None when the user did not name it."""
    if isinstance(value, list):
        return tuple(value) or None
    if value is None or typing.get_origin(hint) is Literal or isinstance(value, hint if isinstance(hint, type) else ()):
        return value
    return settings.from_text(settings.option(name), hint, value)


def _configure_logging(level: int) -> None:
    if not sys.stderr.isatty():
        level = min(level, logging.INFO)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("jaxllm").setLevel(level)
    logging.getLogger("pallas_kernels").setLevel(level)
