"""What a grammar has to know of a model's tokens: the bytes that each stands for, and which stand for none."""

import functools
import itertools
import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Protocol

from llguidance import LLTokenizer

_INSIDE_STRING = r'[^"\\\x00-\x1F\x7F]'
SLICES = [
    r"[\x20\x0A\x0D\x09]+",
    *(f"{_INSIDE_STRING}{times}" for times in ("{1,4}", "{1,8}", "{1,14}", "{1,30}", "+")),
]
"""Kinds of tokens that are looked at as one where a grammar allows all of a kind. The lengths, finer than llguidance's
own, save a third of the time where strings are bounded."""


MAX_TOKENIZED = 4096
"""Texts whose tokens are kept."""


class Vocabulary(Protocol):
    """A tokenizer, as far as grammars go.

    Attributes:
        vocab_size: how many tokens it has; the model's own count may differ.
        special_token_ids: tokens that are no text, and match none in a grammar.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def special_token_ids(self) -> Collection[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...


class TokenTable:
    """The tokens of a model, in the form that llguidance takes.

    Attributes:
        tokens: by id the bytes that it adds to a text; none for ids without a token.
        special_token_ids: those that are no text.
        eos_token_id: what llguidance is told ends a text. Which ids do is for each request to say.
    """

    is_tokenizer_wrapper = True  # how llguidance knows its kind
    bos_token_id = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_token_ids: Collection[int],
        eos_token_id: int,
        encode: Callable[[str], list[int]] | None = None,
    ):
        """encode: as the model's tokenizer does; without it texts become the longest tokens that fit."""
        self.tokens = list(tokens)
        self.special_token_ids = sorted(special_token_ids)
        self.eos_token_id = eos_token_id
        self._encode = encode
        self._tokenized = functools.lru_cache(MAX_TOKENIZED)(self._tokenize)

    @classmethod
    def read(cls, vocabulary: Vocabulary, size: int, eos_token_ids: Collection[int]) -> "TokenTable":
        """size: tokens of the model, whose logits may be more than the tokenizer's tokens, or fewer."""
        known = min(size, vocabulary.vocab_size)
        tokens = [vocabulary.token_bytes(token) for token in range(known)] + [b""] * (size - known)
        special = {token for token in (*vocabulary.special_token_ids, *eos_token_ids) if token < size}
        if special:
            eos = next((token for token in eos_token_ids if token < size), min(special))
        else:  # nothing ends a text: some id that no text has
            eos = next((token for token, text in enumerate(tokens) if not text), size - 1)
        return cls(tokens, special, eos, lambda text: vocabulary.encode(text, add_special_tokens=False))

    def build(self) -> LLTokenizer:
        """Takes a second for 128,000 tokens."""
        return LLTokenizer(self, slices=SLICES)  # type: ignore[arg-type]

    def __call__(self, text: str) -> list[int]:
        """The tokens that the model's tokenizer has for a text in the midst of another."""
        return list(self._tokenized(text))  # of what is asked for, the keys of a schema say, much is asked for again

    def _tokenize(self, text: str) -> list[int]:
        if self._encode is not None:
            # Some tokenizers put a space before all that they are given: behind a line break it is the text alone.
            before = self._encode("\n")
            token_ids = self._encode("\n" + text)
            if token_ids[: len(before)] == before:
                token_ids = token_ids[len(before) :]
                if max(token_ids, default=0) < len(self.tokens) and self.text(token_ids) == text.encode():
                    return token_ids
        return self._longest(text.encode())

    def literal(self, text: str) -> str:
        """A text in llguidance's dialect of Lark: special tokens by their ids, for they match no text."""
        parts = self._special_pattern.split(text) if self._special_texts else [text]
        words = [
            f"<[{self._special_texts[part]}]>" if odd else json.dumps(part, ensure_ascii=False)
            for odd, part in zip(itertools.cycle((False, True)), parts, strict=False)
            if part
        ]
        return " ".join(words)

    @cached_property
    def _special_texts(self) -> dict[str, int]:
        texts = ((self.tokens[token].decode(errors="replace"), token) for token in self.special_token_ids)
        return {text: token for text, token in texts if text}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._special_texts, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def text(self, token_ids: Sequence[int]) -> bytes:
        return b"".join([self.tokens[token] for token in token_ids])

    def _longest(self, text: bytes) -> list[int]:
        token_ids, at = [], 0
        longest = max(map(len, self._ids))
        while at < len(text):
            end = min(len(text), at + longest)
            while end > at + 1 and text[at:end] not in self._ids:
                end -= 1
            if text[at:end] not in self._ids:
                break  # no token spells it: what is not told of will be drawn
            token_ids.append(self._ids[text[at:end]])
            at = end
        return token_ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {text: token for token, text in enumerate(self.tokens) if text and token not in special}
