"""Where the tokens of a completion stand in its text: `text_offset` of its log probabilities."""

import codecs
from collections.abc import Iterable, Sequence


class Offsets:
    """Counts the characters of one choice's tokens, as they come.

    A character whose bytes are spread over several tokens is one, and each of those tokens stands where it begins.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._next = 0

    def of(self, tokens: Iterable[bytes]) -> list[int]:
        """The places of the next tokens."""
        places = []
        for token in tokens:
            places.append(self._next)
            self._next += len(self._utf8.decode(token))
        return places

    def of_prompt(self, tokens: Sequence[bytes], text: str) -> list[int]:
        """Those of the prompt that begins the choice's text, before all others.

        Tokens that the tokenizer put before the prompt, and the space before the first word of sentencepiece, are not
        in the text.
        """
        begin = text.encode()
        first = next((i for i, token in enumerate(tokens) if begin.startswith((token, token.removeprefix(b" ")))), 0)
        seen = [b""] * first + list(tokens[first:])
        if seen and not begin.startswith(seen[first]):
            seen[first] = seen[first].removeprefix(b" ")
        places = self.of(seen)
        self._next += len(self._utf8.decode(b"", final=True))  # what is generated begins a character of its own
        return places
