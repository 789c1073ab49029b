"""What an LLM can do with a model that generates nothing: embed, classify, score, and numbers token by token."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxllm.core import Delta, FinishReason, PoolingParams, PoolingRequest, PoolingTask
from jaxllm.interrupts import interrupts_held
from jaxllm.progress import reporting
from jaxllm.prompts import Prompt, as_list, content_of
from jaxllm.server.pooling import PoolingInputs, pooled

if TYPE_CHECKING:
    from jaxllm.engine import Engine
    from jaxllm.server.text import Tokenizer


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """embedding: [D] float32."""

    embedding: np.ndarray


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """probs: [classes] float32, or plain scores where the model was made for those; labels: the classes' names."""

    probs: np.ndarray
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    """score: how well a document fits a query, in [0, 1] or as the model gives it; cosine for embedding models."""

    score: float


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    """data: [D] float32 of the sequence, or [T, D] of its tokens."""

    data: np.ndarray


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput[Output]:
    """A prompt and what came of it. prompt: its text; None if it was given as token ids."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: Output


class PoolingMethods:
    """Of an LLM. Each raises RequestError, before anything runs, where the model does not do what is asked.

    Shared keywords:
        use_activation: normalise embeddings, make probabilities of scores; None is as the checkpoint says. Not of
            scores by angle, which have none.
        truncate_prompt_tokens: cut what is longer to this many tokens, -1 to what the model takes; None refuses it.
        use_tqdm: show how many are done, on a terminal.
    """

    if TYPE_CHECKING:

        @property
        def engine(self) -> Engine: ...
        @property
        def tokenizer(self) -> Tokenizer: ...

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        dimensions: int | None = None,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[EmbeddingOutput]]:
        """A vector for each prompt, in their order. dimensions: keep that many of its first numbers."""
        params = PoolingParams(
            task="embed",
            dimensions=dimensions,
            use_activation=use_activation,
            truncate_prompt_tokens=truncate_prompt_tokens,
        )
        return self._pool_prompts(prompts, params, use_tqdm, EmbeddingOutput)

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ClassificationOutput]]:
        """The probability of each class, or the reward, for each prompt."""
        params = PoolingParams(
            task="classify", use_activation=use_activation, truncate_prompt_tokens=truncate_prompt_tokens
        )
        pooling = self.engine.info.pooling
        labels = () if pooling is None else pooling.labels
        return self._pool_prompts(prompts, params, use_tqdm, lambda values: ClassificationOutput(values, labels))

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: PoolingTask | None = None,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """The model's numbers as they are: of each prompt (embed, classify) or of each of its tokens (token_embed,
        token_classify: labels of tokens, logits of a masked language model, rewards of steps).

        pooling: None is what the model was made for.
        """
        params = PoolingParams(
            task=pooling, use_activation=use_activation, truncate_prompt_tokens=truncate_prompt_tokens
        )
        return self._pool_prompts(prompts, params, use_tqdm, PoolingOutput)

    def score(
        self,
        queries: Prompt | Sequence[Prompt],
        documents: Prompt | Sequence[Prompt],
        *,
        use_activation: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingRequestOutput[ScoringOutput]]:
        """How well each document fits the query, or its query: one query for all, or one for each.

        A cross-encoder reads both as a pair; of an embedding model it is the cosine of their angle.
        """
        params = PoolingParams(use_activation=use_activation, truncate_prompt_tokens=truncate_prompt_tokens)
        contents = [content_of(document) for document in as_list(documents)]
        scoring = self._inputs.scoring([content_of(query) for query in as_list(queries)], contents, params)
        self._run_pooling(scoring.requests, use_tqdm)
        # A pair has no text of its own; by embeddings the document has.
        texts = [content if scoring.num_queries and isinstance(content, str) else None for content in contents]
        ids = [request.request_id for request in scoring.requests[scoring.num_queries :]]
        return [
            PoolingRequestOutput(request_id, text, prompt, ScoringOutput(float(score)))
            for request_id, text, prompt, score in zip(ids, texts, scoring.prompts, scoring.scores(), strict=True)
        ]

    @property
    def _inputs(self) -> PoolingInputs:
        return PoolingInputs(self.engine, lambda: self.tokenizer)

    def _pool_prompts[Output](
        self,
        prompts: Prompt | Sequence[Prompt],
        params: PoolingParams,
        use_tqdm: bool,
        as_output: Callable[[np.ndarray], Output],
    ) -> list[PoolingRequestOutput[Output]]:
        contents = [content_of(prompt) for prompt in as_list(prompts)]
        requests = self._inputs.requests(contents, params)
        return [
            PoolingRequestOutput(
                request.request_id, content if isinstance(content, str) else None, request.prompt, as_output(values)
            )
            for content, request, values in zip(contents, requests, self._run_pooling(requests, use_tqdm), strict=True)
        ]

    def _run_pooling(self, requests: list[PoolingRequest], use_tqdm: bool) -> list[np.ndarray]:
        """Runs them all; whatever is left is aborted if this is interrupted."""
        engine = self.engine
        waiting = deque(requests)
        left = {request.request_id for request in requests}
        try:
            with reporting(None) if use_tqdm else nullcontext() as report:
                while left:
                    with interrupts_held():
                        while waiting and engine.num_queued < engine.config.max_queued:
                            engine.add(waiting.popleft())
                        deltas: list[Delta] = engine.step()
                    left.difference_update(delta.request_id for delta in deltas)
                    if deltas and report is not None:
                        report(len(requests) - len(left), len(requests), "pooling")
        finally:
            with interrupts_held():
                for request in requests:
                    if request.request_id in left:
                        engine.abort(request.request_id, FinishReason.ABORT)
        return pooled(requests)
