"""The text of one request, as its tokens come."""

import codecs
from collections.abc import Sequence

from jaxllm.core import SamplingParams
from jaxllm.server.text.stop_strings import StopStrings
from jaxllm.server.text.tokenizer import Tokenizer


class TextStream:
    """Turns the tokens drawn for one request into text, each piece as early as it is certain.

    - The pieces joined are what the tokens add to the decoded prompt: a leading space stays, as it does in
      the middle of a text. Bytes that are no UTF-8 become U+FFFD, and a character whose bytes are spread over
      several tokens waits for its last byte.
    - Tokens left out by `skip_special_tokens` and tokens that stand for no text add nothing.
    - A stop string ends the text before it (behind it under `include_stop_str_in_output`). Only text that may be
      the beginning of a stop string is held back. Strings completed by one of the first `min_tokens - 1` tokens
      do not count. The token that completed the stop string is the request's last one: `num_tokens` counts it,
      and whatever was drawn after it is no part of the answer.
    - A stop token's text is left out likewise, unless `include_stop_str_in_output`.

    The cost is constant per token, whatever came before.

    Attributes:
        num_tokens: how many of the tokens fed belong to the answer.
        stop: the stop string met, or None. Once there is one, further tokens are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, keep: frozenset[str] = frozenset()):
        """keep: special tokens that stay in the text whatever the parameters say."""
        self._pieces = tokenizer.pieces(params.skip_special_tokens, keep)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._min_tokens = params.min_tokens
        self._keep_stop = params.include_stop_str_in_output
        self._stops = StopStrings(params.stop, self._keep_stop) if params.stop else None
        self.num_tokens = 0
        self.stop: str | None = None

    def feed(
        self, token_ids: Sequence[int], final: bool = False, stop_token: int | None = None
    ) -> tuple[str, str | None]:
        """Take the next tokens; return the text that is now certain and the stop string met, if one was.

        final: no tokens follow, so that everything held back comes out.
        stop_token: the token id that ended the request (`Delta.stop_token`); it is the last of token_ids.
        """
        if self.stop is not None:
            return "", self.stop
        pieces = [self._pieces[token] for token in token_ids]
        if stop_token is not None and not self._keep_stop:
            pieces[-1] = b""
        if self._stops is None:
            self.num_tokens += len(pieces)
            return self._utf8.decode(b"".join(pieces), final), None
        return self._feed_watching(self._stops, pieces, final)

    def _feed_watching(self, stops: StopStrings, pieces: list[bytes], final: bool) -> tuple[str, str | None]:
        text = []
        for piece in pieces:
            self.num_tokens += 1
            released, self.stop = stops.push(self._utf8.decode(piece), armed=self.num_tokens >= self._min_tokens)
            text.append(released)
            if self.stop is not None:
                return "".join(text), self.stop
        if final:
            released, self.stop = stops.push(self._utf8.decode(b"", True), armed=self.num_tokens >= self._min_tokens)
            text += [released, stops.flush()]
        return "".join(text), self.stop
