"""The answers of the endpoints that pool, in OpenAI's form and in vLLM's, as what stands beside their heads."""

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.pooling.reading import (
    ClassifyRequest,
    EmbeddingRequest,
    Encoding,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)


def embeddings(request: EmbeddingRequest, answer: pb.EmbedResponse) -> dict[str, Any]:
    data = [
        {
            "index": index,
            "object": "embedding",
            "embedding": _base64(vector.values) if request.encoding_format == "base64" else list(vector.values),
        }
        for index, vector in enumerate(answer.embeddings)
    ]
    return {"data": data, "usage": _usage(sum(answer.prompt_tokens))}


def classes(request: ClassifyRequest, answer: pb.ClassifyResponse) -> dict[str, Any]:
    """The label is that of the likeliest class, where classes have names."""
    data = []
    for index, vector in enumerate(answer.probs):
        probs = list(vector.values)
        label = answer.labels[int(np.argmax(probs))] if len(answer.labels) == len(probs) else None
        data.append({"index": index, "label": label, "probs": probs, "num_classes": len(probs)})
    return {"data": data, "usage": _usage(sum(answer.prompt_tokens))}


def scores(request: ScoreRequest, answer: pb.ScoreResponse) -> dict[str, Any]:
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(answer.scores)]
    return {"data": data, "usage": _usage(answer.total_tokens)}


def ranking(request: RerankRequest, answer: pb.ScoreResponse) -> dict[str, Any]:
    """The best first; among equals the earlier."""
    order = sorted(range(len(answer.scores)), key=lambda index: -answer.scores[index])[: request.top_n or None]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": answer.scores[index]} for index in order]
    if request.return_documents is not False:
        for result in results:
            result["document"] = {"text": request.documents[result["index"]]}
    return {"results": results, "usage": _usage(answer.total_tokens)}


def numbers(request: PoolingRequest, answer: pb.PoolResponse) -> dict[str, Any]:
    data = [
        {"index": index, "object": "pooling", "data": _rows(own, answer.per_token, request.encoding_format)}
        for index, own in enumerate(answer.data)
    ]
    return {"data": data, "usage": _usage(sum(answer.prompt_tokens))}


def _rows(own: pb.PoolResponse.Numbers, per_token: bool, encoding: Encoding | None) -> str | list[float] | list[Any]:
    if encoding == "base64":
        return _base64(own.values)
    values = list(own.values)
    if not per_token:
        return values
    return [values[start : start + own.columns] for start in range(0, len(values), own.columns)]


def _base64(values: Sequence[float] | Iterable[float]) -> str:
    """Of the numbers as float32, the lowest byte first: what OpenAI's client reads."""
    return base64.b64encode(np.fromiter(values, "<f4").tobytes()).decode()


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
