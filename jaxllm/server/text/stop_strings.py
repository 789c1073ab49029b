"""Finding stop strings in text that comes in pieces, and holding back only what may still become one."""

import functools
from collections.abc import Sequence


class StopStrings:
    """Searches growing text for the first of several strings to be complete, reading character by character.

    The result does not depend on how the text is cut into pieces. Each string keeps the length of its longest
    prefix that ends the text so far (Knuth, Morris and Pratt), so the cost is constant per character and string
    whatever they hold. Text is held back only while it is the beginning of a stop string: at most one character
    less than the longest; nothing is held back when the stop string is to be kept.

    When two strings become complete at the same character the longer one counts.
    """

    def __init__(self, stops: Sequence[str], keep: bool = False):
        """keep: the stop string stays in the text."""
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._fallbacks = [_fallbacks(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._beginnings = frozenset(stop[0] for stop in self._stops)
        self._keep = keep
        self._held = ""

    def push(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Take the next piece; return the text to release and the stop string met, if one was.

        After a stop string nothing more may be pushed. armed=False reads on without stopping (while `min_tokens`
        is not reached); a string that began there and is completed later still counts.
        """
        if self._beginnings.isdisjoint(text) and not any(self._matched):
            return text, None  # most tokens: nothing in them begins or goes on with a stop string
        window = self._held + text
        for i, character in enumerate(text, start=len(self._held) + 1):
            complete = self._advance(character)
            if armed and complete is not None:
                self._held = ""
                if self._keep:
                    return window[len(window) - len(text) : i], complete
                return window[: i - len(complete)], complete
        if self._keep:
            return text, None
        released = len(window) - max(self._matched, default=0)
        self._held = window[released:]
        return window[:released], None

    def flush(self) -> str:
        """What is still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        complete = None
        for n, stop in enumerate(self._stops):
            fallbacks, length = self._fallbacks[n], self._matched[n]
            while length and stop[length] != character:
                length = fallbacks[length]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                complete = complete or stop
                length = fallbacks[length]
            self._matched[n] = length
        return complete


@functools.lru_cache(maxsize=256)  # samples of one prompt have the same, and so have many requests
def _fallbacks(stop: str) -> tuple[int, ...]:
    """[len + 1]: for each matched length, the longest shorter prefix of `stop` that also ends there."""
    table = [0] * (len(stop) + 1)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[length] != stop[i]:
            length = table[length]
        if stop[length] == stop[i]:
            length += 1
        table[i + 1] = length
    return tuple(table)
