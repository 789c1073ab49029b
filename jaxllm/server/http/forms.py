"""The forms of JSON that every endpoint keeps to: no coercion, no unknown fields, nothing ignored in silence."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from jaxllm.errors import RequestError

MAX_UINT32 = 2**32 - 1


_HINTS = {
    **{
        f"guided_{name}": ("structured_outputs", f"send structured_outputs={{{name!r}: ...}}")
        for name in ("json", "choice", "regex", "grammar", "whitespace_pattern")
    },
    "return_tokens_as_token_ids": (
        "return_token_ids",
        "logprobs name tokens by their text; return_token_ids=true answers with the ids beside them",
    ),
}
"""Of names that clients know from elsewhere: the field in whose stead they would stand, and what to do."""


def _hint(name: str, known: Sequence[str]) -> str:
    """What to do about an unknown field. known: those of the form."""
    instead, advice = _HINTS.get(name, ("", ""))
    if instead in known:
        return advice
    near = () if instead or len(name) > 100 else difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


class Strict(BaseModel):
    """No coercion ("1" is not 1), and no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for name in data:
                if name not in known:
                    raise RequestError(f"unknown field {name!r}; {_hint(name, known)}", name)
        return data


class Body(Strict):
    """What a request holds. Its fields may have other names than the engine's errors say."""

    @property
    def names(self) -> Mapping[str, str]:
        """What the body calls fields that the engine names: its names by the engine's."""
        return {}

    @property
    def prompt_field(self) -> str:
        """The field that the engine's prompt is made of."""
        return "prompt"


def _refuse(value: Any, info: ValidationInfo) -> Any:
    neutral = value is None or value is False or value in ("", [], {}, "none")
    if not neutral:
        raise RequestError(f"{info.field_name} is not supported by this server; leave it out", info.field_name)
    return value


Unsupported = Annotated[Any, AfterValidator(_refuse)]
"""Refused unless it says nothing (null, false, empty, "none"): ignoring it would answer another question."""
Ignored = Any
"""Ignored on purpose: labels for the provider's own records and routing, which change no answer."""
ReturnTimings = Annotated[
    bool | None,
    Field(
        description="answer with the seconds that it waited, computed its prompt and drew: of each choice, or of the "
        "whole request where answers have no choices."
    ),
]
"""Taken by every endpoint that has the engine compute."""
Objects = list[dict[str, Any]]


def check_token_ids(ids: list[Any], where: str) -> list[int]:
    if not all(type(token) is int and 0 <= token <= MAX_UINT32 for token in ids):
        bad = next(token for token in ids if not (type(token) is int and 0 <= token <= MAX_UINT32))
        raise RequestError(f"{where}: {bad!r} is not a token id", where)
    return ids


def read[M: Strict](model: type[M], value: Any, where: str) -> M:
    """A part of a request as its form describes it. Raises RequestError, which says where it stands."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        path = ".".join((where, *(str(step) for step in first["loc"])))
        message = str(cause) if isinstance(cause, RequestError) else f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise RequestError(f"{path}: {message}", where.partition("[")[0]) from None


def check_nesting(value: Any, levels: int, where: str) -> None:
    """RequestError where lists and objects stand in each other more than `levels` deep."""
    layer = [value]
    for _ in range(levels + 1):
        inside = [item.values() if isinstance(item, dict) else item for item in layer if isinstance(item, (dict, list))]
        layer = [item for items in inside for item in items]
        if not layer:
            return
    raise RequestError(f"{where}: lists and objects are nested more than {levels} deep", where)


def check_members(form: BaseModel, kind: str, members: Mapping[str, Sequence[str]], where: str) -> None:
    """RequestError for a member that is set and none of those that forms of this kind have. members: by kind."""
    for name in form.model_fields_set - {"type", *members[kind]}:
        if getattr(form, name) is not None:
            shown = type(form).model_fields[name].alias or name
            raise RequestError(f"{where}: {shown} says nothing where type is {kind!r}; leave it out", where)


def check_priority(priority: int | None) -> None:
    if priority is not None and not -(2**31) <= priority < 2**31:
        raise RequestError(f"priority={priority}: must be a 32-bit integer", "priority")
