"""What form an answer has to have: a JSON schema, a regular expression, a choice, a grammar, tags."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxllm.errors import RequestError

MAX_SPECIFICATION = 1 << 20
"""Characters of a schema, a grammar or the like at most."""
MAX_REGEX = 1 << 16
MAX_CHOICES = 10_000

KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
"""The fields of StructuredOutputs of which one has to be set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """The form of an answer. Names and meanings are those of vLLM. Exactly one of the first six has to be set.

    Attributes:
        json: a JSON schema, as text or as an object (a pydantic model's model_json_schema()); kept as text. The
            properties of objects are written in the schema's order.
        json_object: any JSON object.
        regex: a regular expression that the whole answer matches; without look-around and back references.
        choice: one of these texts.
        grammar: a context-free grammar in llguidance's dialect of Lark, which begins at `start`.
        structural_tag: free text with constrained parts between tags, as text or as an object:
            {"triggers": ["<f="], "structures": [{"begin": "<f=sum>", "schema": {...}, "end": "</f>"}]}, or the newer
            {"format": {...}}.
        whitespace_pattern: a regular expression for what may stand between the tokens of JSON; by default one or two
            blanks, or a line break and what indents the next line.
        disable_any_whitespace: nothing may stand there.
        disable_additional_properties: objects hold the properties that the schema names and no others, unless it asks
            for more.
        thinking_ends: texts that end thinking: all is free before the first of them. None: the answer begins at once.
            In chats over the network it is the server that knows these.
        thinking_starts: tokens, as text, that begin thinking; an answer that begins with none of them does not think.
            None: it thinks from the beginning.
    """

    json: str | Mapping[str, Any] | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    thinking_ends: tuple[str, ...] = ()
    thinking_starts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("json_object", "disable_any_whitespace", "disable_additional_properties"):
            value = getattr(self, name)
            if value is None:  # as clients write what they leave out
                object.__setattr__(self, name, False)
            elif not isinstance(value, bool):
                raise _error(f"{name}={value!r}: must be true or false")
        kinds = [
            name for name in KINDS if getattr(self, name) is not None and (name != "json_object" or self.json_object)
        ]
        if len(kinds) != 1:
            known = ", ".join(KINDS)
            raise _error(f"{' and '.join(kinds)} are set together" if kinds else f"none of {known} is set; set one")
        for name in ("json", "structural_tag"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _canonical(name, value))
        for name, limit in (
            ("regex", MAX_REGEX), ("grammar", MAX_SPECIFICATION), ("whitespace_pattern", MAX_REGEX)
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None:
                _check_text(name, value, limit)
        for name in ("choice", "thinking_ends", "thinking_starts"):
            if (value := getattr(self, name)) is not None:
                if isinstance(value, str) or not all(isinstance(text, str) and text for text in value):
                    raise _error(f"{name} must hold texts, none of them empty")
                object.__setattr__(self, name, tuple(value))
        if self.choice is not None:
            if not 1 <= len(self.choice) <= MAX_CHOICES:
                raise _error(f"choice holds {len(self.choice)} texts: must be 1 to {MAX_CHOICES}")
            _check_text("choice", "".join(self.choice), MAX_SPECIFICATION)
        if self.thinking_starts and not self.thinking_ends:
            raise _error("thinking_starts without thinking_ends: name what ends it")
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            raise _error("whitespace_pattern and disable_any_whitespace are set together; leave one out")
        of_json = (self.whitespace_pattern is not None, self.disable_any_whitespace, self.disable_additional_properties)
        if any(of_json) and self.json is None and not self.json_object:
            raise _error(
                "whitespace_pattern, disable_any_whitespace and disable_additional_properties are about json and "
                "json_object; leave them out"
            )
        if self.disable_additional_properties and self.json is None:
            raise _error("disable_additional_properties leaves json_object no property; leave it out")

    @property
    def size(self) -> int:
        """Characters of its specification."""
        texts = (self.json, self.regex, self.grammar, self.structural_tag, *(self.choice or ()))
        return sum(map(len, filter(None, texts)))


def _canonical(name: str, value: Any) -> str:
    """The same JSON, however it was written; the order of keys says something and stays."""
    try:
        if isinstance(value, str):
            _check_text(name, value, MAX_SPECIFICATION)
            value = json.loads(value, parse_constant=_no_constant)
        if not isinstance(value, (Mapping, bool) if name == "json" else Mapping):
            raise _error(f"{name}: must be a JSON object, as text or as it is")
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise _error(f"{name}: is nested too deeply") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise _error(f"{name}: no JSON ({error})") from error
    _check_text(name, text, MAX_SPECIFICATION)
    return text


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _check_text(name: str, value: Any, limit: int) -> None:
    if not isinstance(value, str):
        raise _error(f"{name} must be a text")
    if len(value) > limit:
        raise _error(f"{name} holds {len(value)} characters, and at most {limit} are taken")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _error(f"{name} holds half of a surrogate pair, which no text has")


def _error(why: str) -> RequestError:
    return RequestError(f"structured_outputs: {why}", "structured_outputs")
