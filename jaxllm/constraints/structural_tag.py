"""Structural tags become grammars of llguidance's: free text with constrained parts in it.

Two forms are read, as vLLM and SGLang take them: {"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]},
and {"format": {...}} with the formats of XGrammar that `_FORMATS` names, which hold one another.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llguidance import regex_to_lark

from jaxllm.constraints import json_schema
from jaxllm.errors import RequestError

Literal = Callable[[str], str]
"""A text in the grammar's own words: special tokens by their ids, all else quoted."""


def to_grammar(tag: str, literal: Literal) -> str:
    """The grammar of a structural tag's JSON. Raises RequestError."""
    value = json.loads(tag)
    try:
        return _Writer(literal).grammar(_older(value) if "structures" in value else _newer(value))
    except RecursionError:
        raise _error("is nested too deeply") from None


def _newer(value: Mapping[str, Any]) -> Any:
    _check_fields("structural_tag", value, {"type", "format"})
    return _get(value, "format", Mapping, "structural_tag")


def _older(value: Mapping[str, Any]) -> Any:
    _check_fields("structural_tag", value, {"type", "structures", "triggers"})
    tags = []
    for structure in _get(value, "structures", list, "structural_tag"):
        if not isinstance(structure, Mapping):
            raise _error("structures must hold objects")
        _check_fields("structures", structure, {"begin", "schema", "end"})
        content = {"type": "json_schema", "json_schema": structure.get("schema", {})}
        tags.append({"begin": structure.get("begin"), "content": content, "end": structure.get("end")})
    return {"type": "triggered_tags", "triggers": value.get("triggers"), "tags": tags}


class _Writer:
    """Writes the rules of one grammar."""

    def __init__(self, literal: Literal):
        self._literal = literal
        self._rules: list[str] = []
        self._others: list[dict[str, str]] = []

    def grammar(self, form: Any) -> str:
        start = self._write(form)
        lark = "\n".join((f"start: {start}", *self._rules, "TEXT: /(?s:.*)/"))
        return json.dumps({"grammars": [{"lark_grammar": lark}, *self._others]}, ensure_ascii=False)

    def _write(self, form: Any) -> str:
        """The name of a rule for a format."""
        kind = form.get("type") if isinstance(form, Mapping) else form
        if not isinstance(form, Mapping) or not isinstance(kind, str) or kind not in _FORMATS:
            raise _error(f"format {kind!r} is not supported: use one of {', '.join(_FORMATS)}")
        fields, write = _FORMATS[kind]
        _check_fields(kind, form, {"type", *fields})
        return self._rule(write(self, form))

    def _rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def _const_string(self, form: Mapping[str, Any]) -> str:
        return self._literal(_get(form, "value", str)) or '""'

    def _json_schema(self, form: Mapping[str, Any]) -> str:
        schema = form.get("json_schema")
        if not isinstance(schema, (Mapping, bool)):
            raise _error("json_schema must be a JSON schema")
        return f"%json {json.dumps(json_schema.prepare(json.dumps(schema)), ensure_ascii=False)}"

    def _regex(self, form: Mapping[str, Any]) -> str:
        return f"/{regex_to_lark(_get(form, 'pattern', str))}/"

    def _grammar(self, form: Mapping[str, Any]) -> str:
        name = f"g{len(self._others)}"
        self._others.append({"name": name, "lark_grammar": _get(form, "grammar", str)})
        return f"@{name}"

    def _any_text(self, form: Mapping[str, Any]) -> str:
        """The name of a terminal."""
        excluded = form.get("excludes") or []
        if not isinstance(excluded, list) or not all(isinstance(text, str) and text for text in excluded):
            raise _error("excludes must hold texts, none of them empty")
        if not excluded:
            return "TEXT"
        none = " & ".join(f"~/(?s:.*){_escaped(text)}(?s:.*)/" for text in excluded)
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: /(?s:.*)/ & {none}")
        return name

    def _sequence(self, form: Mapping[str, Any]) -> str:
        return " ".join(self._write(element) for element in _get(form, "elements", list))

    def _or(self, form: Mapping[str, Any]) -> str:
        return " | ".join(self._write(element) for element in _some(form, "elements"))

    def _optional(self, form: Mapping[str, Any]) -> str:
        return f"{self._write(form.get('content'))}?"

    def _tag(self, form: Mapping[str, Any], begun: str = "") -> str:
        """begun: how the tag begins, as far as it has been written."""
        begin, content = _get(form, "begin", str), form.get("content")
        ends = form.get("end")
        ends = ends if isinstance(ends, list) and ends else [ends]
        if not all(isinstance(end, str) for end in ends):
            raise _error("a tag's end must be a string")
        alternatives = []
        for end in ends:
            written = self._literal(end)
            if isinstance(content, Mapping) and content.get("type") == "any_text" and _is_text(written, end):
                _check_fields("any_text", content, ("type", "excludes"))
                # up to the first text that ends it, and no further
                inner, written = self._rule(self._any_text(content), f"[suffix={written}]"), ""
            else:
                inner = self._write(content)
            alternatives.append(f"{self._literal(begin[len(begun) :])} {inner} {written}")
        return " | ".join(alternatives)

    def _tags_with_separator(self, form: Mapping[str, Any]) -> str:
        tags = f"({' | '.join(self._rule(self._tag(tag)) for tag in _tags(form))})"
        separator = self._literal(_get(form, "separator", str))
        several = tags if form.get("stop_after_first") else f"{tags} ({separator} {tags})*"
        return several if form.get("at_least_one") else f"({several})?"

    def _triggered_tags(self, form: Mapping[str, Any]) -> str:
        triggers, rules = _some(form, "triggers"), []
        if not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise _error("triggers must hold texts, none of them empty")
        for tag in _tags(form):
            begin = _get(tag, "begin", str)
            trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
            if trigger is None:
                raise _error(f"the tag that begins with {begin!r} has no trigger: list how it begins")
            written = self._literal(trigger)
            # A trigger that is text ends the free text where it first stands; a token was never part of it.
            lazy = _is_text(written, trigger)
            before = self._rule(f"TEXT {written}", "[lazy]") if lazy else f"TEXT {written}"
            rules.append(self._rule(f"{before} ({self._tag(tag, trigger)})"))
        tags = f"({' | '.join(rules)})"
        if form.get("stop_after_first"):
            return tags if form.get("at_least_one") else f"{tags} | TEXT"
        return f"{tags}{'+' if form.get('at_least_one') else '*'} {self._rule('TEXT')}"


_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[_Writer, Mapping[str, Any]], str]]] = {
    "const_string": (("value",), _Writer._const_string),
    "json_schema": (("json_schema",), _Writer._json_schema),
    "regex": (("pattern",), _Writer._regex),
    "grammar": (("grammar",), _Writer._grammar),
    "any_text": (("excludes",), _Writer._any_text),
    "sequence": (("elements",), _Writer._sequence),
    "or": (("elements",), _Writer._or),
    "optional": (("content",), _Writer._optional),
    "tag": (("begin", "content", "end"), _Writer._tag),
    "tags_with_separator": (
        ("tags", "separator", "at_least_one", "stop_after_first"), _Writer._tags_with_separator
    ),
    "triggered_tags": (("triggers", "tags", "at_least_one", "stop_after_first"), _Writer._triggered_tags),
}  # fmt: skip
"""By its name a format's fields and what writes it."""


def _is_text(written: str, text: str) -> bool:
    """Whether there is text and no special token in it."""
    return bool(text) and written == json.dumps(text, ensure_ascii=False)


def _escaped(text: str) -> str:
    """A regular expression for the text, within slashes."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def _tags(form: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tags = _some(form, "tags")
    for tag in tags:
        if not isinstance(tag, Mapping):
            raise _error("tags must hold objects")
        _check_fields("tag", tag, {"type", "begin", "content", "end"})
    return tags


def _some(form: Mapping[str, Any], name: str) -> list[Any]:
    values: list[Any] = _get(form, name, list)
    if not values:
        raise _error(f"{name} is empty")
    return values


def _get(form: Mapping[str, Any], name: str, kind: type, of: str | None = None) -> Any:
    value = form.get(name)
    if not isinstance(value, kind):
        known = "a string" if kind is str else "a list" if kind is list else "an object"
        raise _error(f"{name} of {of or form.get('type', 'tag')} must be {known}")
    return value


def _check_fields(of: str, form: Mapping[str, Any], known: Sequence[str] | set[str]) -> None:
    if unknown := set(form) - set(known):
        raise _error(f"{of} has no field {min(unknown)!r}: known are {', '.join(sorted(known))}")


def _error(why: str) -> RequestError:
    return RequestError(f"structured_outputs: structural_tag: {why}", "structured_outputs")
