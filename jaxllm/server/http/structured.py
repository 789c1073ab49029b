"""How clients ask for structured outputs: OpenAI's response_format, and vLLM's structured_outputs."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from jaxllm.errors import RequestError
from jaxllm.server.http.forms import Ignored, Strict, check_members
from jaxllm.structured_outputs import StructuredOutputs


class JsonSchemaFormat(Strict):
    name: str | None = None
    description: Ignored = None  # for the model, where it is told of the schema; we tell it nothing
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: Ignored = None  # a schema is always kept to


_MEMBERS = {
    "text": (),
    "json_object": (),
    "json_schema": ("json_schema",),
    "structural_tag": ("format", "structures", "triggers"),
}


class ResponseFormat(Strict):
    """OpenAI's form of structured outputs, with vLLM's structural_tag beside them."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    format: dict[str, Any] | None = None  # of a structural tag: the newer kind,
    structures: list[dict[str, Any]] | None = None  # or the older one
    triggers: list[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_members(self, self.type, _MEMBERS, "response_format")
        return self

    def structured_outputs(self) -> StructuredOutputs | None:
        match self.type:
            case "json_object":
                return StructuredOutputs(json_object=True)
            case "json_schema":
                if self.json_schema is None or self.json_schema.schema_ is None:
                    raise RequestError(
                        "response_format: json_schema must hold a schema: {'name': ..., 'schema': {...}}",
                        "response_format",
                    )
                return StructuredOutputs(json=self.json_schema.schema_)
            case "structural_tag":
                return StructuredOutputs(structural_tag=self.model_dump(exclude_none=True, exclude={"json_schema"}))
        return None


class Structured(Strict):
    """vLLM's structured_outputs; its fields are those of the class that it becomes."""

    json_: str | dict[str, Any] | bool | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    thinking_ends: list[str] | None = None
    thinking_starts: list[str] | None = None

    def structured_outputs(self) -> StructuredOutputs:
        return StructuredOutputs(**self.model_dump(by_alias=True, exclude_none=True))
