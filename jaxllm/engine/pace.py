"""How fast prompts are computed beside requests that decode: what a stream waits for is a step."""

from collections.abc import Callable, Sequence

SHARE = 0.2
"""Of the time, for prompts that few wait for: who decodes keeps the rest."""

FEW = 1 / 16
"""Prompts for each decoding request up to which it is those that decode whose time counts."""

ALMOST = 0.75
"""Of an interval, that a step may take then: what a stream waits for varies by more than its steps."""

STREAMS = 64
"""Decoding requests from which on it never is: their step alone takes about the interval."""

SOME = 4
"""Intervals that a step may take where more prompts wait."""

CROWD = 128
"""Decoding requests from which on a step costs so many so much that its prompts are to fill it."""

FULL = 7
"""Intervals that such a step may take. An 8B reads 40,000 tokens a second in steps of 50 ms, 47,000 in steps of 90."""

HOLD = 4
"""Decode steps that prompts wait for others to fill it."""

PATIENCE = 20.0
"""Seconds that few prompts take at most at that share; where there is more to compute, it is done at every step."""


class Pace:
    """Bounds the prompt tokens of a step, so that a stream gets its tokens about as often as it should.

    Where few prompts come among streams, a step with a chunk takes no longer than the interval, and long prompts no
    more than their share of the time. Where more wait, the sooner they decode the better for all: steps may take SOME
    intervals. Among a crowd prompts are computed together, in FULL steps.
    """

    def __init__(
        self, interval: float, step_seconds: Callable[[int], float], extends: Sequence[tuple[int, float]]
    ) -> None:
        """interval: seconds between a stream's tokens. step_seconds(rows): of a decode step. extends: the sizes of the
        programs that compute prompts, and the seconds of each; without any nothing is bounded."""
        self._interval = interval
        self._step_seconds = step_seconds
        self._extends = sorted(extends)
        self._depth = 0.0  # seconds that a token takes beyond its part of those, so far into a prompt as they are now
        self._shared = False  # whether the next step's prompts have but their share
        self._owed = 0.0  # seconds of decoding that are due before prompts take more than their share
        self._holds = False  # whether prompts wait for others
        self._held = 0  # decode steps that they have

    def room(self, most: int, num_decoding: int, num_prompts: int, todo: Callable[[], int], hurry: bool) -> int:
        """Tokens that prompts may have of the next step, `most` at most.

        todo: tells the tokens still to be computed of those of the num_prompts prompts that have a place. hurry: some
        of them are the rest of an answer.
        """
        few = num_decoding < STREAMS and num_prompts <= FEW * num_decoding
        crowd = num_decoding >= CROWD
        intervals = ALMOST if few else FULL if crowd else SOME
        size = self._size(num_decoding, intervals * self._interval, 0.0 if crowd else self._depth)
        room = most if size is None else min(most, size - num_decoding)
        self._holds = crowd and size is not None and num_prompts > 0 and not hurry and todo() < room
        if self._holds and self._held < HOLD:
            return 0
        left = todo() if few and size is not None and not hurry else 0
        self._shared = left > most  # shorter ones are soon done
        if not self._shared:
            self._owed = 0.0
        elif self._owed > 0.0 and size is not None and room:
            seconds = self._seconds(size) - self._step_seconds(num_decoding)
            if left / room * seconds / SHARE <= PATIENCE:
                return 0
        return room

    def spend(self, num_tokens: int, num_decoding: int) -> None:
        """A step with prompts is planned, of so many tokens in all."""
        self._held = 0
        if self._shared:
            extra = self._seconds(num_tokens) - self._step_seconds(num_decoding)
            self._owed += max(0.0, extra) * (1.0 / SHARE - 1.0)

    def learn(self, num_tokens: int, seconds: float) -> None:
        """A step with prompts of so many tokens in all has taken so long: more than its program, whose time was
        measured at the start of a prompt, where there is much before them to attend to."""
        if self._extends:
            beyond = max(0.0, seconds - self._program(num_tokens)) / num_tokens
            self._depth += (beyond - self._depth) / 2  # by halves, as one step may have been held up

    def earn(self, num_decoding: int, steps: int) -> None:
        """A program that decodes is planned."""
        self._held += steps if self._holds else 0
        self._owed = max(0.0, self._owed - steps * self._step_seconds(num_decoding))

    def _size(self, num_decoding: int, longest: float, depth: float) -> int | None:
        """The largest program that takes no longer than that, but the least at least that has room for a chunk; None if
        any will do."""
        times = [(size, seconds + depth * size) for size, seconds in self._extends]
        if num_decoding == 0 or not times or times[-1][1] <= longest:
            return None
        least = max(num_decoding + 1, num_decoding * 5 / 4)
        roomy = [(size, seconds) for size, seconds in times if size >= least]
        fitting = [size for size, seconds in roomy if seconds <= longest]
        return max(fitting, default=roomy[0][0] if roomy else None)

    def _seconds(self, num_tokens: int) -> float:
        return self._program(num_tokens) + self._depth * num_tokens

    def _program(self, num_tokens: int) -> float:
        return next((seconds for size, seconds in self._extends if size >= num_tokens), self._extends[-1][1])
