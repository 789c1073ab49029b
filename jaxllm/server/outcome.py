"""How a request went, once it has ended: what its line in the log and its trace tell."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxllm.core import Delta
from jaxllm.sampling_params import SamplingParams

MAX_ID = 256
"""Characters of a request's id in a line of the log."""


@dataclass(slots=True)
class Outcome:
    """One request, from its arrival to its end. Times are time.monotonic() values.

    Attributes:
        client_request_id: the client's own name for it, or "".
        traceparent, tracestate: the trace that it belongs to, as W3C Trace Context has them, or "".
        params: None where the request was refused before they were read.
        finish: of each sample that ended.
        error: why it failed, or None.
        first_scheduled, first_token: None where it did not come so far.
    """

    request_id: str
    client_request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    arrival: float = 0.0
    params: SamplingParams | None = None
    num_prompt: int = 0
    num_cached: int = 0
    num_output: int = 0
    finish: list[str] = field(default_factory=list)
    error: str | None = None
    first_scheduled: float | None = None
    first_token: float | None = None
    ended: float = 0.0

    def add(self, delta: Delta, num_output: int, reason: str) -> None:
        """Count a sample that has ended, of num_output tokens. delta: its last."""
        self.num_prompt, self.num_cached = delta.num_prompt, delta.num_cached
        self.num_output += num_output
        self.finish.append(reason)
        self.first_scheduled, self.first_token = delta.first_scheduled, delta.first_token

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""
        return self.ended - self.arrival

    @property
    def queue_seconds(self) -> float:
        return (self.ended if self.first_scheduled is None else self.first_scheduled) - self.arrival

    @property
    def prefill_seconds(self) -> float | None:
        if self.first_token is None or self.first_scheduled is None:
            return None
        return self.first_token - self.first_scheduled

    @property
    def decode_seconds(self) -> float | None:
        return None if self.first_token is None else self.ended - self.first_token

    def __str__(self) -> str:
        """A line for the log; nothing of what was asked or answered."""
        name = self.request_id[:MAX_ID] + (f" ({self.client_request_id})" if self.client_request_id else "")
        end = self.error or ", ".join(self.finish) or "abort"
        stages = f"queue {self.queue_seconds:.3f}"
        if self.prefill_seconds is not None and self.decode_seconds is not None:
            stages += f", prefill {self.prefill_seconds:.3f}, decode {self.decode_seconds:.3f}"
        line = (
            f"request {name}: {end}; {self.num_prompt} prompt tokens, {self.num_cached} of them cached, "
            f"{self.num_output} new, {self.seconds:.3f} s ({stages})"
        )
        return line if line.isprintable() else line.encode("unicode_escape").decode()  # clients choose ids


OnOutcome = Callable[[Outcome], None]
