"""What clients may ask of a model that generates nothing, and its translation into the engine's calls.

OpenAI's embeddings; scores, classes and plain numbers as vLLM has them; rerank as Jina and Cohere have it. Values are
judged by the same `PoolingParams` the offline API has.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from google.protobuf.message import Message
from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from jaxllm.core import PoolingParams, PoolingTask
from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.forms import Body, Ignored, ReturnTimings, Unsupported, check_priority
from jaxllm.server.http.requests import Prompts

Encoding = Literal["float", "base64"]
Texts = Annotated[
    list[str] | None,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]),
]


def _documents(value: Any) -> list[str]:
    """The text of each document."""
    if not isinstance(value, list):
        raise RequestError("documents: must be a list of texts, or of objects {'text': a text}", "documents")
    return [_document(one) for one in value]


def _document(value: Any) -> str:
    match value:
        case str():
            return value
        case {"text": str(text)} if len(value) == 1:
            return text
    raise RequestError("documents: each must be a text, or {'text': a text}", "documents")


Documents = Annotated[
    list[str], PlainValidator(_documents, json_schema_input_type=list[str | dict[Literal["text"], str]])
]


_SEVERAL = ("input", "text_1", "text_2", "queries", "documents")
"""The fields that take several inputs, of all of these endpoints."""


class PoolingFields(Body):
    """The fields that all of these endpoints share, named as vLLM names them."""

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = Field(None, description="lower runs earlier; only with `--scheduling-policy priority`.")
    return_timings: ReturnTimings = None

    user: Ignored = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_priority(self.priority)
        PoolingParams(
            task=getattr(self, "task", None),
            dimensions=getattr(self, "dimensions", None),
            use_activation=self.use_activation,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
        )
        return self

    @property
    def names(self) -> Mapping[str, str]:
        return {"prompt": "input", "inputs": "input"}

    @property
    def counts(self) -> dict[str, int]:
        """How many inputs stand in each field that takes several."""
        given = {name: getattr(self, name, None) for name in _SEVERAL}
        return {name: len(inputs) for name, inputs in given.items() if inputs is not None}

    def to_proto(self, request_id: str) -> Message:
        """The engine's call."""
        raise NotImplementedError

    def options(self) -> pb.PoolingOptions:
        return pb.PoolingOptions(
            use_activation=self.use_activation,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            priority=self.priority or 0,
        )


def _inputs(contents: list[str] | list[list[int]]) -> list[pb.PoolingInput]:
    return [
        pb.PoolingInput(text=content)
        if isinstance(content, str)
        else pb.PoolingInput(token_ids=pb.TokenIds(ids=content))
        for content in contents
    ]


class EmbeddingRequest(PoolingFields):
    """POST /v1/embeddings."""

    input: Prompts
    encoding_format: Encoding | None = None
    dimensions: int | None = None

    def to_proto(self, request_id: str) -> pb.EmbedRequest:
        return pb.EmbedRequest(
            request_id=request_id,
            model=self.model or "",
            inputs=_inputs(self.input),
            dimensions=self.dimensions,
            options=self.options(),
        )


def _at_fault(fields: Mapping[str, Sequence[str]]) -> str:
    """The field to name where something is wrong with a text's length: one that is empty, else one with the longest."""
    lengths = {name: [len(text) for text in texts] for name, texts in fields.items()}
    empty = (name for name, own in lengths.items() if 0 in own)
    return next(empty, max(lengths, key=lambda name: max(lengths[name], default=0)))


class ClassifyRequest(PoolingFields):
    """POST /v1/classify."""

    input: Prompts

    def to_proto(self, request_id: str) -> pb.ClassifyRequest:
        return pb.ClassifyRequest(
            request_id=request_id, model=self.model or "", inputs=_inputs(self.input), options=self.options()
        )


class ScoreRequest(PoolingFields):
    """POST /v1/score: the queries in text_1, the documents in text_2, or under these names."""

    text_1: Texts = None
    text_2: Texts = None
    queries: Texts = None
    documents: Texts = None

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        for one, other in (("text_1", "queries"), ("text_2", "documents")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise RequestError(f"send either {one} or {other}", one)
        return self

    @property
    def _texts(self) -> dict[str, list[str]]:
        """Queries and documents, by the names under which they were sent."""
        fields = (
            "queries" if self.text_1 is None else "text_1",
            "documents" if self.text_2 is None else "text_2",
        )
        return {name: getattr(self, name) for name in fields}

    @property
    def names(self) -> Mapping[str, str]:
        queries, documents = self._texts
        return {"queries": queries, "documents": documents, "prompt": _at_fault(self._texts)}

    def to_proto(self, request_id: str) -> pb.ScoreRequest:
        queries, documents = self._texts.values()
        return pb.ScoreRequest(
            request_id=request_id,
            model=self.model or "",
            queries=_inputs(queries),
            documents=_inputs(documents),
            options=self.options(),
        )


class RerankRequest(PoolingFields):
    """POST /v1/rerank: the documents that fit a query best. top_n: so many of them; null or 0 is all."""

    query: str
    documents: Documents
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: Unsupported = None
    max_chunks_per_doc: Unsupported = None
    max_tokens_per_doc: Unsupported = None

    @property
    def names(self) -> Mapping[str, str]:
        return {"queries": "query", "prompt": _at_fault({"query": [self.query], "documents": self.documents})}

    @model_validator(mode="after")
    def _check_top(self) -> Self:
        if self.top_n is not None and self.top_n < 0:
            raise RequestError(f"top_n={self.top_n}: must not be negative; leave it out for all documents", "top_n")
        return self

    def to_proto(self, request_id: str) -> pb.ScoreRequest:
        return pb.ScoreRequest(
            request_id=request_id,
            model=self.model or "",
            queries=_inputs([self.query]),
            documents=_inputs(self.documents),
            options=self.options(),
        )


class PoolingRequest(PoolingFields):
    """POST /pooling."""

    input: Prompts
    task: PoolingTask | None = None
    encoding_format: Encoding | None = None
    dimensions: int | None = None

    def to_proto(self, request_id: str) -> pb.PoolRequest:
        task = f"POOLING_TASK_{(self.task or 'unspecified').upper()}"
        return pb.PoolRequest(
            request_id=request_id,
            model=self.model or "",
            inputs=_inputs(self.input),
            task=pb.PoolingTask.Value(task),
            dimensions=self.dimensions,
            options=self.options(),
        )
