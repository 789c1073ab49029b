"""Thinking is free, and the answer behind it is not."""

import numpy as np
import pytest

from jaxllm.constraints import Compiler
from jaxllm.constraints.vocabulary import TokenTable
from jaxllm.errors import ConstraintError, RequestError
from jaxllm.server.text import Tokenizer
from jaxllm.structured_outputs import StructuredOutputs
from tests.constraints.conftest import EOS, Drawer


@pytest.fixture
def after_thinking(drawer: Drawer):
    def compile(**fields):
        return drawer.compiler.compile(StructuredOutputs(choice=("yes", "no"), **fields), (EOS,))

    return compile


def feed(constraint, tokens: list[int]) -> bool:
    return [constraint.accept(token) for token in tokens][-1]


@pytest.mark.parametrize("text", ["I wonder. No?</think>", "</think>", "a </think >b</thin</think>\n\n"])
def test_thinking_is_free_until_its_end(text: str, after_thinking, drawer: Drawer, tokenizer: Tokenizer) -> None:
    constraint = after_thinking(thinking_ends=("</think>",))
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for token in tokens[:-1]:
        allowed = drawer.allowed(constraint)
        assert allowed[token]
        assert not allowed[EOS]
        assert constraint.forced() == []
        assert constraint.accept(token)
    assert feed(constraint, tokens[-1:])
    other = constraint.fork()
    allowed = drawer.allowed(constraint)
    starts = {tokenizer.token_bytes(int(token)).strip() for token in np.flatnonzero(allowed)}
    assert starts <= {b"", b"y", b"n", b"ye", b"no", b"yes"}
    assert b"" in starts, "white space may come first"
    (line,) = tokenizer.encode("\n", add_special_tokens=False)
    endless = constraint.fork()
    with pytest.raises(ConstraintError):
        feed(endless, [line] * 10)
    assert feed(constraint, tokenizer.encode("yes", add_special_tokens=False)) is False
    assert feed(other, tokenizer.encode("no", add_special_tokens=False)) is False


def test_no_token_holds_the_end_of_thinking_and_the_answers_beginning(
    after_thinking, drawer: Drawer, tokenizer: Tokenizer
) -> None:
    """Every such token is left out, wherever the end was begun; those with space behind the end stay."""
    texts = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    constraint = after_thinking(thinking_ends=("st",))
    for said in ("s", ""):
        behind = constraint.fork()
        for token in tokenizer.encode(said, add_special_tokens=False):
            behind.accept(token)
        allowed = drawer.allowed(behind)
        for token, text in enumerate(texts):
            if token in tokenizer.special_token_ids:
                continue
            _, found, rest = (said.encode() + text).partition(b"st")
            assert allowed[token] == (not (found and rest.strip())), (said, text)


def test_an_answer_may_begin_with_thinking(after_thinking, drawer: Drawer, tokenizer: Tokenizer) -> None:
    user, end = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("<|user|>", "<|end|>"))
    constraint = after_thinking(thinking_starts=("<|user|>", "<none>"), thinking_ends=("<|end|>",))
    at_once = constraint.fork()
    assert drawer.allowed(constraint)[user]
    assert not drawer.allowed(constraint)[end]
    assert feed(constraint, [user, *tokenizer.encode("hm", add_special_tokens=False), end])
    assert not drawer.allowed(constraint)[user]
    assert feed(constraint, tokenizer.encode("no", add_special_tokens=False)) is False
    assert feed(at_once, tokenizer.encode("yes", add_special_tokens=False)) is False
    with pytest.raises(ConstraintError):
        after_thinking(thinking_starts=("<|user|>",), thinking_ends=("<|end|>",)).accept(end)


def test_starts_need_ends() -> None:
    with pytest.raises(RequestError, match="thinking_starts without thinking_ends"):
        StructuredOutputs(regex="a", thinking_starts=("<think>",))


class _Sentencepiece:
    """A tokenizer that puts a space before all that it is given, and has more tokens than its model."""

    vocab_size = 9
    special_token_ids = (0,)
    texts = (b"<s>", b" a", b"a", b"b", b" ", b"\n", b"ab", b"c", b"d")

    def token_bytes(self, token: int) -> bytes:
        return self.texts[token]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        tokens, rest = [], (" " + text).encode()
        while rest:
            token = max((t for t in range(1, 9) if rest.startswith(self.texts[t])), key=lambda t: len(self.texts[t]))
            tokens.append(token)
            rest = rest[len(self.texts[token]) :]
        return tokens


def test_token_tables() -> None:
    table = TokenTable.read(_Sentencepiece(), 7, [0, 99])
    assert table.tokens == [b"<s>", b" a", b"a", b"b", b" ", b"\n", b"ab"]
    assert table("ab") == [6], "in the midst of a text, where no space is added"
    assert (table.eos_token_id, table.special_token_ids) == (0, [0])
    assert table.literal('x<s>"') == '"x" <[0]> "\\""'
    wider = TokenTable.read(_Sentencepiece(), 12, [])
    assert wider.tokens[9:] == [b"", b"", b""]
    Compiler(_Sentencepiece, 7, [0]).compile(StructuredOutputs(choice=("ab",)), (0,))
