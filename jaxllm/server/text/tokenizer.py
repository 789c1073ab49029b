"""The checkpoint's tokenizer: text to ids, ids to text, and the bytes that each id stands for."""

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import processors

from jaxllm.core import SamplingParams
from jaxllm.errors import ConfigError
from jaxllm.server.text import chat

_VOCABULARY_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_FLAGGED = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
"""Classes whose flags decided what tokens a text begins and ends with."""
_THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))


class Tokenizer:
    """A Hugging Face fast tokenizer, read from a local directory.

    Each token stands for bytes that do not depend on its neighbours, so a text can be put together token by
    token; `pieces` holds them. They are worked out from the tokenizer's declared decoder: the byte alphabet of
    byte-level BPE, sentencepiece's <0xNN> bytes, and for other tokens whatever the decoder itself makes of them
    behind another token.
    """

    def __init__(self, tokenizer: Any):
        """tokenizer: transformers' PreTrainedTokenizerFast."""
        self._hf = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # Some tokenizer.json carry what their makers last cut and padded texts to.
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder().items()
        self._specials = {i: token.content for i, token in added if token.special}
        self._pieces = _Pieces(_piece_function(self._backend))
        self._pieces_without_specials: dict[frozenset[str], _Pieces] = {}
        self.vocab_size = len(tokenizer)
        """How many tokens there are, added ones included; a model's own vocabulary may be padded beyond it."""

    @classmethod
    def load(cls, path: str | Path, chat_template: str | None = None) -> "Tokenizer":
        """Read the tokenizer of a checkpoint directory; chat_template names a Jinja file to use instead of its own.

        Raises ConfigError when there is none, or none that can be read.
        """
        directory = Path(path)
        if not any((directory / name).is_file() for name in _VOCABULARY_FILES):
            raise ConfigError(
                f"no tokenizer in {str(path)!r} (looked for {', '.join(_VOCABULARY_FILES)}): copy tokenizer.json "
                "and tokenizer_config.json there, or name a directory that has them with --tokenizer"
            )
        # Without this, transformers warns on import that PyTorch is missing; nothing here wants it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer builds some classes anew from the vocabulary and so departs from tokenizer.json (Phi-3's
        # leading spaces, in transformers 5.23): the file is what the model was trained with.
        loader = PreTrainedTokenizerFast if (directory / "tokenizer.json").is_file() else AutoTokenizer
        try:
            tokenizer = loader.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise anything, bare Exception included
            raise ConfigError(
                f"the tokenizer in {str(path)!r} cannot be read: {str(error).strip().splitlines()[0]}; "
                "a tokenizer.json (the fast tokenizer's file) is what is wanted"
            ) from error
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"the tokenizer in {str(path)!r} is a slow one ({type(tokenizer).__name__}): convert it to "
                "a tokenizer.json with transformers' save_pretrained"
            )
        if chat_template is not None:
            tokenizer.chat_template = chat.read_template(chat_template)
        _add_ends(tokenizer, directory)
        return cls(tokenizer)

    @property
    def special_token_ids(self) -> Collection[int]:
        """Tokens that are no text, but say something of it."""
        return self._specials.keys()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of the text; special tokens written out in it are recognised."""
        return self._encoded([text], add_special_tokens)[0].ids

    def encode_many(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text with its special tokens, cut to max_tokens with those kept."""
        return [
            _cut(whole, max_tokens)[0] for batch in _batches(texts, map(len, texts)) for whole in self._encoded(batch)
        ]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], max_tokens: int | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Token ids of each pair in the tokenizer's own form, and the segment of each token.

        max_tokens: the longer text of a pair is cut first, then both alike.
        """
        sizes = (len(first) + len(second) for first, second in pairs)
        return [_cut(whole, max_tokens) for batch in _batches(pairs, sizes) for whole in self._encoded(batch)]

    def _encoded(self, texts: list[Any], add_special_tokens: bool = True) -> list[Any]:
        """The encoding of each text, or pair of texts. Never one by one: `encode` keeps the interpreter's lock, for a
        second with a megabyte, and no other thread gets on meanwhile."""
        encodings: list[Any] = self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        return encodings

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of whole sequences. Ids that stand for nothing are left out.

        A sentencepiece tokenizer drops one leading space; use a TextStream for text that goes on from another.
        """
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._hf.chat_template)

    @property
    def chat_template(self) -> str:
        """The Jinja text, "" without one. Of several the one for tools, as that is where they tell of their format."""
        template = self._hf.chat_template or ""
        return template if isinstance(template, str) else template.get("tool_use") or template.get("default", "")

    def render_chat(self, messages: Sequence[chat.Message], /, **kwargs: Any) -> str:
        """The prompt's text for a conversation; keywords as in `chat.render`."""
        return chat.render(self._hf, messages, **kwargs)

    def apply_chat(self, messages: Sequence[chat.Message], /, **kwargs: Any) -> list[int]:
        """The prompt's token ids for a conversation; the template writes the special tokens."""
        return self.encode(self.render_chat(messages, **kwargs), add_special_tokens=False)

    def resolve(self, params: SamplingParams) -> SamplingParams:
        """The same parameters with token ids for what was said in text: bad words, and how thinking starts and ends.

        A bad word is meant with a space before it and without. Raises RequestError.
        """
        if not params.need_tokenizer:
            return params
        words = [
            tuple(self.encode(text, add_special_tokens=False))
            for word in params.bad_words
            for text in (word, " " + word.lstrip())
        ]
        thinking = params.thinking_token_ids
        if params.thinking_token_budget is not None and thinking is None:
            thinking = self.thinking_token_ids
        return dataclasses.replace(
            params,
            bad_words=(),
            bad_words_ids=tuple(dict.fromkeys((*params.bad_words_ids, *filter(None, words)))),
            thinking_token_ids=thinking,
        )

    @cached_property
    def thinking_token_ids(self) -> tuple[int, int] | None:
        """The tokens that start and end thinking, if the vocabulary has such."""
        for pair in _THINKING:
            start, end = (self._backend.token_to_id(token) for token in pair)
            if start is not None and end is not None:
                return start, end
        return None

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text: part of a character for some tokens, nothing for ids without a token."""
        return self._pieces[token_id]

    def token_text(self, token_id: int) -> str:
        """token_bytes as text; bytes that are no UTF-8 by themselves become U+FFFD."""
        return self._pieces[token_id].decode("utf-8", "replace")

    def pieces(self, skip_special_tokens: bool = False, keep: frozenset[str] = frozenset()) -> Mapping[int, bytes]:
        """The bytes of every token id, worked out when first asked for.

        keep: special tokens that are not to be skipped with the others.
        """
        if not skip_special_tokens:
            return self._pieces
        if keep not in self._pieces_without_specials:
            skipped = {i for i, text in self._specials.items() if text not in keep}
            self._pieces_without_specials[keep] = _Pieces(lambda i: b"" if i in skipped else self._pieces[i])
        return self._pieces_without_specials[keep]


class _Pieces(dict[int, bytes]):
    """A table that fills itself: most requests use a small part of a vocabulary."""

    def __init__(self, piece: Callable[[int], bytes]):
        super().__init__()
        self._piece = piece

    def __missing__(self, token_id: int) -> bytes:
        piece = self[token_id] = self._piece(token_id)
        return piece


def _piece_function(backend: Any) -> Callable[[int], bytes]:
    """How one token's bytes follow from its name in the vocabulary. backend: tokenizers.Tokenizer."""
    decoder = backend.decoder
    kinds = _decoder_kinds(json.loads(decoder.__getstate__())) if decoder is not None else set()
    join: Callable[[list[str]], str] = decoder.decode if decoder is not None else " ".join
    alphabet = _byte_alphabet() if "ByteLevel" in kinds else None
    before = join(["a"])

    def piece(token_id: int) -> bytes:
        name: str | None = backend.id_to_token(token_id)
        if name is None:
            return b""
        if alphabet is not None:
            try:
                return bytes([alphabet[character] for character in name])
            except KeyError:  # an added token, spelled as itself
                return name.encode()
        if "ByteFallback" in kinds and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            try:
                return bytes([int(name[3:5], 16)])
            except ValueError:
                pass
        return join(["a", name])[len(before) :].encode()

    return piece


def _decoder_kinds(state: dict[str, Any]) -> set[str]:
    """The types in a decoder's declaration, those inside a Sequence included."""
    return {state["type"]}.union(*(_decoder_kinds(inner) for inner in state.get("decoders", ())))


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character (Radford et al. 2019, GPT-2's bytes_to_unicode).

    Printable Latin-1 stands for itself; the other bytes, in order, take the characters from U+0100 on.
    """

    def printable(byte: int) -> bool:
        return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE

    alphabet = {chr(byte): byte for byte in range(256) if printable(byte)}
    others: Iterable[int] = (byte for byte in range(256) if not printable(byte))
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BATCH_CHARACTERS = 1 << 20
"""Of texts that are encoded at once: an encoding takes a hundred bytes a character until its ids are read."""


def _batches[T](texts: Sequence[T], sizes: Iterable[int]) -> Iterator[list[T]]:
    batch, characters = list[T](), 0
    for text, size in zip(texts, sizes, strict=True):
        batch.append(text)
        characters += size
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cut(whole: Any, max_tokens: int | None) -> tuple[list[int], list[int]]:
    """Ids and segments of an encoding of one text or two, cut to max_tokens: the longer text first, then both alike,
    special tokens last of all.

    By hand: what tokenizers' own `truncate` cuts off it keeps, and makes pairs of, gigabytes for two pages of text.
    """
    ids, types = whole.ids, whole.type_ids
    if max_tokens is None or len(ids) <= max_tokens:
        return ids, types
    texts = whole.sequence_ids  # None for what belongs to no text
    lengths = [texts.count(0), texts.count(1)]
    room = max(0, max_tokens - len(ids) + sum(lengths))
    short = min(min(lengths), room // 2)
    long = room - short
    left = [short, long] if lengths[0] <= lengths[1] else [long, short]
    kept = []
    for place, text in enumerate(texts):
        if text is not None:
            left[text] -= 1
        if text is None or left[text] >= 0:
            kept.append(place)
    return [ids[place] for place in kept[:max_tokens]], [types[place] for place in kept[:max_tokens]]


def _add_ends(tokenizer: Any, directory: Path) -> None:
    """Has a text begin and end with the tokens that tokenizer_config.json asks for, where tokenizer.json does not.

    transformers heeded these flags of the classes named here until its version 5: DeepSeek's plain prompts and E5's
    embeddings rest on them. What tokenizer.json adds though a flag is false stays: it is what the model came with.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))  # transformers has read it before
    if str(config.get("tokenizer_class")).removesuffix("Fast") not in _FLAGGED:
        return
    backend = tokenizer.backend_tokenizer
    bare, whole = backend.encode("a", add_special_tokens=False), backend.encode("a")
    start = next((i for i, token in enumerate(whole.ids) if token == bare.ids[0]), 0)
    before, behind = whole.tokens[:start], whole.tokens[start + len(bare.ids) :]
    if config.get("add_bos_token") is True and tokenizer.bos_token not in (None, *before[:1]):
        before = [tokenizer.bos_token, *before]
    if config.get("add_eos_token") is True and tokenizer.eos_token not in (None, *behind[-1:]):
        behind = [*behind, tokenizer.eos_token]
    ends = [*before, *behind]
    if len(ends) == len(whole.ids) - len(bare.ids):
        return
    first = [*before, "$A:0", *behind]
    second = [part.replace("$A:0", "$B") + ":1" for part in first]
    # In place of tokenizer.json's own, whose ends it has: of two such steps the second takes the first's for texts.
    backend.post_processor = processors.TemplateProcessing(
        single=first, pair=[*first, *second], special_tokens=[(token, backend.token_to_id(token)) for token in ends]
    )
