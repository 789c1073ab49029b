"""OpenAI's API description as a judge of answers."""

import copy
import json
import tarfile
from pathlib import Path
from typing import Any

import jsonschema


class OpenApi:
    """Checks objects against the schemas of OpenAI's API description, read as the JSON schemas it means."""

    @classmethod
    def load(cls, material: Path) -> "OpenApi":
        with tarfile.open(material / "conformance" / "openai-openapi.tar.xz") as archive:
            document = archive.extractfile("openai-openapi/openapi.json")
            assert document is not None
            return cls(json.load(document))

    def __init__(self, document: dict[str, Any]):
        self.schemas = document["components"]["schemas"]
        self._components = _json_schema(document["components"])
        # The description says that a stream's events have the shape of whole answers. In OpenAI's own streams
        # they differ: no finish_reason before the end, and usage null before the last event (as the description
        # itself says under stream_options).
        events = copy.deepcopy(self._components["schemas"]["CreateCompletionResponse"])
        choice = events["properties"]["choices"]["items"]["properties"]
        choice["finish_reason"] = {"anyOf": [choice["finish_reason"], {"type": "null"}]}
        events["properties"]["usage"] = {"anyOf": [events["properties"]["usage"], {"type": "null"}]}
        self._components["schemas"]["CompletionEvent"] = events

    def check(self, name: str, value: Any) -> None:
        assert name in self._components["schemas"]
        schema = {"$ref": f"#/components/schemas/{name}", "components": self._components}
        jsonschema.Draft202012Validator(schema).validate(value)

    def properties(self, name: str) -> set[str]:
        """The property names of an object schema, those of its parts included."""
        names: set[str] = set()
        for part in (schema := self.schemas[name]).get("allOf", []):
            names |= self.properties(part["$ref"].rpartition("/")[2]) if "$ref" in part else set(part["properties"])
        return names | set(schema.get("properties", {}))


def _json_schema(node: Any) -> Any:
    """OpenAPI 3.0's `nullable`, which the document mixes into 3.1, as a union with null."""
    if isinstance(node, list):
        return [_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _json_schema(value) for key, value in node.items()}
    if node.get("nullable") is True:
        del node["nullable"]
        return {"anyOf": [node, {"type": "null"}]}
    return node
