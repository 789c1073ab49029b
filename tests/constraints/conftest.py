"""Answers drawn at random from the masks of constraints: no model is as wayward."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from jaxllm.constraints import Compiler
from jaxllm.core import Constraint
from jaxllm.server.text import Tokenizer
from jaxllm.structured_outputs import StructuredOutputs

EOS = 0
PADDING = 101
"""Logits that the model has beyond its tokens."""


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load("jaxllm/demo_model")


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> Iterator[Compiler]:
    compiler = Compiler(lambda: tokenizer, tokenizer.vocab_size + PADDING, [EOS])
    yield compiler
    compiler.close()


class Drawer:
    """Draws answers: every token that is allowed is as likely as any other, but the longer an answer, the likelier
    those that close what is open."""

    def __init__(self, compiler: Compiler, tokenizer: Tokenizer, size: int):
        """size: logits of the model."""
        self.compiler = compiler
        self.tokenizer = tokenizer
        self.size = size
        self.errors = "strict"  # grammars are of characters
        texts = [tokenizer.token_bytes(token) for token in range(self.size)]
        self.closing = np.array([text in (b'"', b"}", b"]", b'"}', b"}}", b"]}", b"0", b"e", b'",') for text in texts])
        self.closing[EOS] = True

    def allowed(self, constraint: Constraint) -> np.ndarray:
        """[V] bool"""
        mask = np.zeros(-(-self.size // 32), np.int32)
        constraint.fill(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)
        assert not bits[self.tokenizer.vocab_size :].any()
        return bits[: self.size]

    def draw(
        self, form: StructuredOutputs, rng: np.random.Generator, most: int = 400, stop_ids: tuple[int, ...] = (EOS,)
    ) -> str | None:
        """An answer; None where it is not at its end after so many tokens."""
        constraint = self.compiler.compile(form, stop_ids)
        tokens: list[int] = []
        while len(tokens) < most:
            allowed = self.allowed(constraint)
            assert allowed.any(), self.text(tokens)
            if forced := constraint.forced():
                assert allowed[forced[0]], "what has to follow may follow"
            logits = rng.normal(size=self.size) + np.where(self.closing, len(tokens) / 10 - 2, 0)
            if forced and rng.random() < 0.5:
                for token in forced:
                    assert self.allowed(constraint)[token]
                    tokens.append(token)
                    if not constraint.accept(token):
                        return self.text(tokens)
                continue
            token = int(np.where(allowed, logits, -np.inf).argmax())
            if token in stop_ids:
                assert not constraint.accept(token)
                return self.text(tokens)
            tokens.append(token)
            if not constraint.accept(token):
                return self.text(tokens)
        return None

    def text(self, tokens: list[int]) -> str:
        return b"".join(map(self.tokenizer.token_bytes, tokens)).decode(errors=self.errors)

    def draw_json(self, form: StructuredOutputs, rng: np.random.Generator) -> object:
        """A value; fails where none of ten answers comes to its end."""
        for _ in range(10):
            if (text := self.draw(form, rng)) is not None:
                return json.loads(text)
        raise AssertionError(f"no answer ended: {form}")


@pytest.fixture(scope="session")
def drawer(compiler: Compiler, tokenizer: Tokenizer) -> Drawer:
    return Drawer(compiler, tokenizer, tokenizer.vocab_size + PADDING)
