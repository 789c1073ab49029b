"""From texts to the requests that a pooling model computes, and from its vectors to scores.

The offline API and the gRPC service read what they are given with this one code.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from jaxllm.core import ModelInfo, PoolingParams, PoolingRequest
from jaxllm.errors import RequestError
from jaxllm.server.text import Tokenizer

Input = str | Sequence[int]
"""A text, or its token ids."""


class PoolingEngine(Protocol):
    """What is asked of Engine or EngineClient."""

    info: ModelInfo

    @property
    def make_pooling_request(self) -> Callable[..., PoolingRequest]: ...


@dataclass(frozen=True)
class Scoring:
    """What is computed for the scores of documents.

    Attributes:
        requests: pairs, one for each document; or the queries' embeddings, then those of the documents.
        num_queries: how many of them are queries' embeddings; 0 where they are pairs.
    """

    requests: list[PoolingRequest]
    num_queries: int = 0

    @property
    def prompts(self) -> list[list[int]]:
        """The tokens of each document with its query."""
        if self.num_queries == 0:
            return [request.prompt for request in self.requests]
        return [query.prompt + document.prompt for query, document in self._joined(self.requests)]

    @property
    def lengths(self) -> list[int]:
        """How many those are."""
        if self.num_queries == 0:
            return [len(request.prompt) for request in self.requests]
        return [len(query.prompt) + len(document.prompt) for query, document in self._joined(self.requests)]

    def scores(self) -> np.ndarray:
        """[documents] float32, once every request has ended."""
        values = pooled(self.requests)
        if self.num_queries == 0:
            return np.concatenate(values)
        return np.array([query @ document for query, document in self._joined(values)], np.float32)

    def _joined[T](self, parts: Sequence[T]) -> Iterator[tuple[T, T]]:
        """Each document's part behind its query's."""
        return zip(itertools.cycle(parts[: self.num_queries]), parts[self.num_queries :], strict=False)


def pooled(requests: Sequence[PoolingRequest]) -> list[np.ndarray]:
    """What came of requests that have ended, each [D] or [T, D] float32."""
    values = [request.pooled for request in requests if request.pooled is not None]
    assert len(values) == len(requests), "a request ended without its values, and nobody ended it"
    return values


class PoolingInputs:
    """Makes requests of inputs, for one engine."""

    def __init__(self, engine: PoolingEngine, tokenizer: Callable[[], Tokenizer]):
        """tokenizer: yields it, or raises; asked where there is text."""
        self._engine = engine
        self._tokenizer = tokenizer

    def requests(
        self, inputs: Sequence[Input], params: PoolingParams, *, priority: int = 0, deadline: float | None = None
    ) -> list[PoolingRequest]:
        """One request for each input. Raises RequestError, ConfigError for text without a tokenizer."""
        texts = [self._cased(content) for content in inputs if isinstance(content, str)]
        encoded = iter(self._tokenizer().encode_many(texts, self._most_tokens(params)) if texts else ())
        return [
            self._request(next(encoded) if isinstance(content, str) else content, params, priority, deadline, at=number)
            for number, content in _numbered(inputs)
        ]

    def scoring(
        self,
        queries: Sequence[Input],
        documents: Sequence[Input],
        params: PoolingParams,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Scoring:
        """How well each document fits the query, or its query: one for all, or one for each. params: task aside."""
        if len(queries) not in (1, len(documents)):
            raise RequestError(
                f"{len(queries)} queries for {len(documents)} documents: give one query, or as many as documents",
                "queries",
            )
        info = self._engine.info
        if info.pooling is None or not info.pooling.scores:
            raise RequestError(
                f"{info.name} ({info.architecture}) does not score pairs: take a cross-encoder (a classifier with one "
                "label) or an embedding model, or start the engine with task='score' to make one of its hidden states",
                "model",
            )
        if not documents:
            return Scoring([])
        if info.pooling.task == "embed":
            if params.use_activation is not None:
                raise RequestError(
                    f"use_activation={params.use_activation}: {info.name} scores by a cosine, which is no activation's "
                    "to change; leave it out",
                    "use_activation",
                )
            params = replace(params, task="embed", use_activation=True)
            inputs = [*queries, *documents]
            return Scoring(self.requests(inputs, params, priority=priority, deadline=deadline), len(queries))
        params = replace(params, task="classify")
        asked = [self._text("queries", query) for query in queries]
        pairs = [
            (query, self._text("documents", document))
            for query, document in zip(itertools.cycle(asked), documents, strict=False)
        ]
        encoded = self._tokenizer().encode_pairs(pairs, self._most_tokens(params))
        return Scoring(
            [
                self._request(ids, params, priority, deadline, types=types if any(types) else None, at=number)
                for number, (ids, types) in _numbered(encoded)
            ]
        )

    def _request(
        self,
        ids: Sequence[int],
        params: PoolingParams,
        priority: int,
        deadline: float | None,
        *,
        types: list[int] | None = None,
        at: int | None = None,
    ) -> PoolingRequest:
        """at: which of several inputs it is, for an error to say."""
        try:
            return self._engine.make_pooling_request(
                ids, params, token_types=types, priority=priority, deadline=deadline
            )
        except RequestError as error:
            if at is None or error.param != "prompt":
                raise
            raise RequestError(f"input {at}: {error}", error.param) from None

    def _most_tokens(self, params: PoolingParams) -> int | None:
        keep = params.truncate_prompt_tokens
        return self._engine.info.max_model_len if keep == -1 else keep

    def _text(self, name: str, content: Input) -> str:
        if not isinstance(content, str):
            raise RequestError("a cross-encoder reads pairs of texts: give text, not token ids", name)
        return self._cased(content)

    def _cased(self, text: str) -> str:
        pooling = self._engine.info.pooling
        return text.lower() if pooling is not None and pooling.lower_case else text


def _numbered[T](items: Sequence[T]) -> Iterator[tuple[int | None, T]]:
    """Each with its number, where there are several."""
    return zip(itertools.count() if len(items) > 1 else itertools.repeat(None), items, strict=False)
