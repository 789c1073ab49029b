"""Writes README.md's table of request parameters, from the code that defines them.

    python scripts/parameter_table.py            # writes it
    python scripts/parameter_table.py --check    # ends with 1 where it is not current

Names, types and defaults are those of SamplingParams and PoolingParams, whose docstrings say what they mean; where a
parameter may stand is read off the protocol's messages and the HTTP requests' forms. What HTTP requests have beside
them, and their forms describe, follows.
"""

import argparse
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jaxllm.cli.command import attribute_docs
from jaxllm.core import PoolingParams
from jaxllm.sampling_params import SamplingParams
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.messages.reading import MessagesRequest
from jaxllm.server.http.pooling.reading import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolingRequest,
    RerankRequest,
    ScoreRequest,
)
from jaxllm.server.http.requests import CompletionRequest
from jaxllm.server.http.responses.reading import ResponsesRequest

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- parameters: scripts/parameter_table.py writes what follows -->", "<!-- end of parameters -->"

GENERATING: dict[str, type[BaseModel]] = {
    "completions": CompletionRequest, "chat": ChatRequest, "responses": ResponsesRequest, "messages": MessagesRequest
}  # fmt: skip
POOLING: dict[str, type[BaseModel]] = {
    "embeddings": EmbeddingRequest, "score": ScoreRequest, "rerank": RerankRequest, "classify": ClassifyRequest,
    "pooling": PoolingRequest,
}  # fmt: skip


def table() -> str:
    """The Markdown between the two marks."""
    sampling = pb.Sampling.DESCRIPTOR.fields_by_name
    pooling = {
        name
        for message in (pb.EmbedRequest, pb.PoolRequest, pb.PoolingOptions)
        for name in message.DESCRIPTOR.fields_by_name
    }
    parts = [
        ("Generation (`SamplingParams`)", _rows(SamplingParams, sampling, GENERATING)),
        ("Models that generate nothing (`PoolingParams`)", _rows(PoolingParams, dict.fromkeys(pooling), POOLING)),
        ("Beside these", _others(pooling)),
    ]
    lines = []
    for title, rows in parts:
        lines += ["<details>", f"<summary>{_html(title)}</summary>", ""]
        lines += ["| name | type | default | meaning | where |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def _rows(params: type, messages: Mapping[str, Any], forms: Mapping[str, type[BaseModel]]) -> Iterator[tuple[str, ...]]:
    docs = attribute_docs(params)
    for field in dataclasses.fields(params):
        where = ["offline"] + ["gRPC"] * (field.name in messages)
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        yield f"`{field.name}`", _type(field.type), f"`{default!r}`", docs[field.name], _where(where, field.name, forms)


def _others(pooling: Collection[str]) -> Iterator[tuple[str, ...]]:
    """What the forms have beside SamplingParams and PoolingParams, and say what it is."""
    known = {field.name for params in (SamplingParams, PoolingParams) for field in dataclasses.fields(params)}
    messages = {*pb.GenerateRequest.DESCRIPTOR.fields_by_name, *pooling}
    forms = GENERATING | POOLING
    seen: set[str] = set()
    for form in forms.values():
        for name, field in form.model_fields.items():
            if name in known or name in seen or not field.description:
                continue
            seen.add(name)
            where = (["offline"] if name in ("priority", "cache_salt") else []) + ["gRPC"] * (name in messages)
            default = f"`{field.default!r}`"
            yield f"`{name}`", _type(field.annotation), default, field.description, _where(where, name, forms)


def _where(places: list[str], name: str, forms: Mapping[str, type[BaseModel]]) -> str:
    endpoints = [endpoint for endpoint, form in forms.items() if name in form.model_fields]
    if endpoints:
        places = [*places, "HTTP" if len(endpoints) == len(forms) else f"HTTP ({', '.join(endpoints)})"]
    return ", ".join(places)


def _type(annotation: Any) -> str:
    parts = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # whose texts differ among Pythons
        parts = list(typing.get_args(annotation))
    texts = ["None" if part is types.NoneType else inspect.formatannotation(part) for part in parts]
    return f"`{re.sub(r'(?:[a-z_]+[.])+(?=[A-Z])', '', ' | '.join(texts))}`"


def _html(title: str) -> str:
    return re.sub(r"`(.+?)`", r"<code>\1</code>", title)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where README.md is not current")
    options = parser.parse_args()
    text = README.read_text("utf-8")
    before, _, rest = text.partition(BEGIN + "\n")
    _, _, behind = rest.partition(END)
    current = f"{before}{BEGIN}\n{table()}{END}{behind}"
    if text == current:
        return 0
    if options.check:
        print("README.md: the table of parameters is not current; run scripts/parameter_table.py", file=sys.stderr)
        return 1
    README.write_text(current, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
