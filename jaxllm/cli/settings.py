"""Where an option's value comes from: the command line, the environment, a file, or its default, in that order.

    --max-model-len 4096            the command line
    JAXLLM_MAX_MODEL_LEN=4096       the environment; several values have commas between, mappings are JSON
    max-model-len: 4096             the YAML file that --config or JAXLLM_CONFIG names; underscores will do as well

An option's other names are for the command line and the file. Variables have one name: others set JAXLLM_PORT, as
Kubernetes does for a service of that name.

A value of a later place is not looked at where an earlier one has one: lists are not joined.
"""

import collections.abc
import dataclasses
import difflib
import json
import logging
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jaxllm.errors import ConfigError

log = logging.getLogger(__name__)

PREFIX = "JAXLLM_"
FILE_VARIABLE = "JAXLLM_CONFIG"
TRUTHS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
NEAR = 0.85
"""How alike a variable's name must be to an option's to be taken for a misspelt one: others read JAXLLM_ too."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that was given, and where: "--max-model-len", "JAXLLM_MAX_MODEL_LEN", "serve.yaml"."""

    value: Any
    origin: str


def resolve(
    fields: Mapping[str, Any],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    file: str | None,
    known: Iterable[str] = (),
    others: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Setting]:
    """Each option that was given, in the order of `fields`.

    fields: an option's name to its type. flags: what the command line named. file: a YAML file, or None.
    known: further names that the file may hold, for other commands. others: other names that the file may call them by.

    Raises ConfigError for a value of a wrong type and for an unknown name in the file.
    """
    found: dict[str, Setting] = {}
    if file is not None:
        for name, value in _read(Path(file), {*fields, *known}, others).items():
            if name in fields:
                found[name] = Setting(from_yaml(name, fields[name], value, file), file)
    for name, hint in fields.items():
        variable = PREFIX + name.upper()
        if variable in environ:
            found[name] = Setting(from_text(variable, hint, environ[variable]), variable)
    _warn_of_misspelt(environ, {*fields, *known})
    for name, value in flags.items():
        found[name] = Setting(value, option(name))
    return {name: found[name] for name in fields if name in found}


def option(name: str) -> str:
    """The option of a field: --max-model-len."""
    return "--" + name.replace("_", "-")


def field(option: str) -> str:
    """The name of an option's field: max_model_len."""
    return option.removeprefix("--").replace("-", "_")


def field_types(config: type) -> dict[str, Any]:
    """The type of each field of a configuration; T of those that are T | None."""
    hints = typing.get_type_hints(config)
    return {field.name: without_none(hints[field.name]) for field in dataclasses.fields(config)}


def without_none(hint: Any) -> Any:
    """T from T | None; anything else as it is."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    inner = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return inner[0] if len(inner) == 1 else hint


def is_mapping(hint: Any) -> bool:
    return typing.get_origin(hint) in (dict, collections.abc.Mapping)


def from_text(where: str, hint: Any, text: str) -> Any:
    """The value that a variable's or an option's text stands for. Raises ConfigError."""
    if is_mapping(hint):
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ConfigError(f'{where}: no JSON ({error}); write an object such as {{"temperature": 0.5}}') from None
        return _checked(where, isinstance(value, dict), value, "a JSON object")
    if typing.get_origin(hint) is tuple:
        item, parts = typing.get_args(hint)[0], [part.strip() for part in text.split(",")] if text.strip() else []
        if item is int and not all(part.removeprefix("-").isdecimal() for part in parts):
            raise ConfigError(f"{where} {text!r}: must be integers with commas between, such as 1,8")
        return tuple(map(item, parts))
    return _scalar(where, hint, text)


def from_yaml(name: str, hint: Any, value: Any, file: str) -> Any:
    """A value of a YAML file, which has types of its own. Raises ConfigError."""
    where = f"{file}: {name}"
    if value is None:
        return None
    if is_mapping(hint):
        return _checked(where, isinstance(value, dict), value, "a mapping")
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        values = value if isinstance(value, list) else [value]
        return tuple(_checked(where, _is(item, each), each, f"{_word(item)}, or a list of such") for each in values)
    if hint is float and _is(int, value):
        return float(value)
    return _checked(where, _is(hint, value), value, _word(hint))


def _scalar(where: str, hint: Any, text: str) -> Any:
    parsers: dict[Any, Callable[[str], Any]] = {bool: lambda text: TRUTHS[text.lower()], int: int, float: float}
    try:
        return parsers.get(hint, str)(text)
    except (ValueError, KeyError):
        raise ConfigError(f"{where} {text!r}: must be {_word(hint)}") from None


def _is(hint: Any, value: Any) -> bool:
    kind = str if typing.get_origin(hint) is Literal else hint
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _checked(where: str, fits: bool, value: Any, word: str) -> Any:
    if not fits:
        raise ConfigError(f"{where}: must be {word}, not {type(value).__name__}")  # its value may be a secret
    return value


def _word(hint: Any) -> str:
    words = {bool: "true or false", int: "an integer", float: "a number"}
    return words.get(hint, "a string (in quotes where YAML reads something else)")


def _read(path: Path, known: set[str], others: Mapping[str, str]) -> dict[str, Any]:
    """The mapping that a YAML file holds, under the fields' names. Raises ConfigError."""
    import yaml  # not needed where no file is named

    try:
        node = yaml.compose(path.read_text("utf-8"), yaml.SafeLoader)
        content = yaml.safe_load(path.read_text("utf-8")) if node is not None else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error}); name a YAML file of options") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: must hold options and their values, such as `max-model-len: 4096`")
    named: dict[str, Any] = {}
    for key, _ in node.value if node is not None else ():
        name = key.value.replace("-", "_")
        name = others.get(name, name)
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`jaxllm serve --show-config` lists what there is"
            raise ConfigError(f"{path}: unknown option {key.value!r}; {hint}")
        if name in named:
            raise ConfigError(f"{path}: {key.value!r} stands there twice, be it under another name; keep one")
        named[name] = content[key.value]
    return named


def _warn_of_misspelt(environ: Mapping[str, str], known: set[str]) -> None:
    names = {PREFIX + name.upper() for name in known} | {FILE_VARIABLE}
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in names:
            near = difflib.get_close_matches(variable, names, 1, NEAR)
            if near:
                log.warning("%s is set and no option; did you mean %s?", variable, near[0])
