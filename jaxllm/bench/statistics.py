"""What a benchmark says of its requests. Names and meanings are those of vLLM's benchmarks.

TTFT: seconds from sending a request to its first token. TPOT: seconds per output token after the first.
ITL: the gap between two arrivals at the client; an arrival may carry several tokens. E2E: seconds from
sending a request to its last token. Goodput: requests per second that met every objective given.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from jaxllm.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (90, 99)


@dataclass(slots=True)
class Record:
    """One request as its client saw it. Times are seconds on one clock.

    sent: when the request went out. arrivals: when tokens came, first to last.
    num_output: tokens that came, whatever the number of arrivals.
    error: why the request failed; None if it did not.
    """

    num_prompt: int
    sent: float
    arrivals: list[float] = field(default_factory=list)
    num_output: int = 0
    error: str | None = None

    @property
    def completed(self) -> bool:
        return self.error is None and bool(self.arrivals)

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def e2el(self) -> float:
        return self.arrivals[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """None for a request of one token, which has no token after the first."""
        return (self.e2el - self.ttft) / (self.num_output - 1) if self.num_output > 1 else None

    @property
    def itl(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


def parse_objectives(texts: list[str]) -> dict[str, float]:
    """["ttft:200", "tpot:50"] to {"ttft": 0.2, "tpot": 0.05}: milliseconds to seconds."""
    objectives: dict[str, float] = {}
    for text in texts:
        name, _, milliseconds = text.partition(":")
        try:
            objectives[name] = float(milliseconds) / 1000
        except ValueError:
            raise ConfigError(f"goodput {text!r}: write METRIC:MILLISECONDS, such as ttft:200") from None
        if name not in ("ttft", "tpot", "e2el") or not objectives[name] > 0:
            raise ConfigError(f"goodput {text!r}: the metric is ttft, tpot or e2el, and its bound is positive")
    return objectives


def samples(records: list[Record]) -> dict[str, list[float]]:
    """Every value of each metric, in seconds, over the completed requests."""
    done = [record for record in records if record.completed]
    return {
        "ttft": [record.ttft for record in done],
        "tpot": [tpot for record in done if (tpot := record.tpot) is not None],
        "itl": [gap for record in done for gap in record.itl],
        "e2el": [record.e2el for record in done],
    }


def summarise(values: list[float]) -> dict[str, float]:
    """Mean, median, standard deviation and percentiles of seconds, in milliseconds; nothing of none."""
    if not values:
        return {}
    milliseconds = np.asarray(values, np.float64) * 1000
    summary = {
        "mean": float(milliseconds.mean()),
        "median": float(np.median(milliseconds)),
        "std": float(milliseconds.std()),
    }
    return summary | {f"p{p}": float(np.percentile(milliseconds, p)) for p in PERCENTILES}


def report(records: list[Record], seconds: float, objectives: dict[str, float] | None = None) -> dict[str, float]:
    """The figures of a run that took `seconds`, as one flat row: `output_throughput`, `p99_ttft_ms`, ..."""
    done = [record for record in records if record.completed]
    num_prompt = sum(record.num_prompt for record in done)
    num_output = sum(record.num_output for record in done)
    row: dict[str, float] = {
        "completed": len(done),
        "failed": len(records) - len(done),
        "duration": seconds,
        "total_input_tokens": num_prompt,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / seconds,
        "output_throughput": num_output / seconds,
        "total_token_throughput": (num_prompt + num_output) / seconds,
    }
    if objectives:
        row["request_goodput"] = sum(meets(record, objectives) for record in done) / seconds
    for metric, values in samples(records).items():
        for statistic, value in summarise(values).items():
            row[f"{statistic}_{metric}_ms"] = value
    return row


def meets(record: Record, objectives: dict[str, float]) -> bool:
    """Whether a completed request stayed within every bound; a metric it does not have is met."""
    return all((value := getattr(record, name)) is None or value <= bound for name, bound in objectives.items())
