"""The engine's Prometheus metrics, under `jaxllm_` and the names users know from vLLM.

`EngineMetrics` observes an `EngineClient`. What happens with every token (256 rows may step every few milliseconds)
is only noted on the engine's thread, and folded into bucket counts with numpy, hundreds at a time; counters and
gauges that the engine keeps anyway are read when somebody looks. A collector of our own turns both into samples.
"""

import bisect
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector

from jaxllm.core import Delta, FinishReason, PoolingRequest, Request

if TYPE_CHECKING:  # what it imports at run time is a device's
    from jaxllm.engine import EngineClient

FOLD_AT = 512
"""Notes that wait at most: folding them takes the engine's thread well under a millisecond."""

# vLLM's buckets, so that dashboards fit; with finer ones below where a step is faster than its first bucket.
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_PER_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
_LATENCY = (
    0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def one_two_five(limit: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `limit`."""
    series = (mantissa * 10**exponent for exponent in itertools.count() for mantissa in (1, 2, 5))
    return list(itertools.takewhile(lambda value: value <= limit, series))


class Histogram:
    """Bucket counts with inclusive upper bounds, as Prometheus has them."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]):
        self.name = name
        self.documentation = documentation
        self._bounds = [float(bound) for bound in bounds]
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: np.ndarray, times: np.ndarray) -> None:
        """values [n], each observed times [n] times."""
        indices = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(indices, times, len(self._counts)).astype(np.int64)
        self._sum += float(values @ times)

    def family(self, label_names: Sequence[str], labels: Sequence[str]) -> HistogramMetricFamily:
        bounds = [str(bound) for bound in self._bounds] + ["+Inf"]
        buckets = list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True))
        family = HistogramMetricFamily(self.name, self.documentation, labels=label_names)
        family.add_metric(labels, buckets, self._sum)
        return family


def _take(notes: list[Any], count: int) -> np.ndarray:
    """Moves the first `count` notes out; another thread may append meanwhile."""
    taken = np.array(notes[:count], np.float64)
    del notes[:count]
    return taken


class ProgramTable(Protocol):
    """What is asked of the runner's table."""

    compile_seconds: float

    @property
    def size(self) -> int: ...


class EngineMetrics(Collector):
    """Observes the client's engine from now on; `render` is the exposition, in Prometheus' format or OpenMetrics'."""

    def __init__(self, client: "EngineClient", table: ProgramTable):
        self._client = client
        self._table = table
        self._labels = [client.info.name]
        length = one_two_five(client.info.max_model_len)

        def seconds(name: str, documentation: str, bounds: Sequence[float] = _LATENCY) -> Histogram:
            return Histogram(f"jaxllm_{name}_seconds", documentation, bounds)

        self._first_token = seconds("time_to_first_token", "From arrival to the first token.", _FIRST_TOKEN)
        self._inter_token = seconds(
            "inter_token_latency", "Between tokens; those that come together share their interval.", _PER_TOKEN
        )
        self._per_token = seconds(
            "request_time_per_output_token", "Mean interval between the tokens of a request.", _PER_TOKEN
        )
        self._latency = seconds("e2e_request_latency", "From arrival to the end.")
        self._queue = seconds("request_queue_time", "From arrival to the first step.")
        self._prefill = seconds("request_prefill_time", "From the first step to the first token.")
        self._decode = seconds("request_decode_time", "From the first token to the end.")
        self._inference = seconds("request_inference_time", "From the first step to the end.")
        self._prompt = Histogram("jaxllm_request_prompt_tokens", "Prompt tokens of a request.", length)
        self._generation = Histogram("jaxllm_request_generation_tokens", "Tokens drawn for a request.", length)
        self._max_tokens = Histogram("jaxllm_request_params_max_tokens", "Tokens a request may draw at most.", length)
        self._iteration = Histogram(
            "jaxllm_iteration_tokens", "Tokens computed (extend) or drawn (decode) by a step.", _ITERATION
        )
        self._histograms = [value for value in vars(self).values() if isinstance(value, Histogram)]
        self._finished = dict.fromkeys(FinishReason, 0)

        self._limits: list[int] = []
        self._steps: list[int] = []
        self._gaps: list[float] = []
        self._gap_tokens: list[int] = []  # appended to after _gaps, and so never longer
        self._turns: list[tuple[Delta, bool]] = []  # first and last deltas, and whether it is the first
        self._folding = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        client.add_observer(self)

    def render(self, openmetrics: bool = False) -> str:
        return (openmetrics_text if openmetrics else generate_latest)(self._registry).decode()

    # --- Observer: on the engine's thread ---

    def observe_request(self, request: Request | PoolingRequest) -> None:
        if not isinstance(request, PoolingRequest):
            self._limits.append(request.max_total - len(request.prompt))

    def observe_delta(self, delta: Delta, previous_time: float | None) -> None:
        if previous_time is None or delta.finish is not None:
            # The numbers alone: log probabilities of a long prompt would be held until the next fold.
            numbers = replace(delta, token_ids=[], logprobs=None, prompt_logprobs=None, pooled=None)
            self._turns.append((numbers, previous_time is None))
        if previous_time is not None and delta.token_ids:
            self._gaps.append(time.monotonic() - previous_time)
            self._gap_tokens.append(len(delta.token_ids))

    def observe_step(self, kind: str, num_tokens: int, seconds: float) -> None:
        self._steps.append(num_tokens)
        if len(self._gaps) + len(self._turns) + len(self._steps) >= FOLD_AT:
            self._fold()

    # --- on whichever thread comes first ---

    def _fold(self) -> None:
        """Move what was noted into the histograms. Appending goes on meanwhile: only what was seen is removed."""
        with self._folding:
            tokens = _take(self._gap_tokens, len(self._gap_tokens))
            gaps = _take(self._gaps, len(tokens))
            self._inter_token.observe_all(gaps / tokens, tokens)
            for histogram, notes in ((self._iteration, self._steps), (self._max_tokens, self._limits)):
                values = _take(notes, len(notes))
                histogram.observe_all(values, np.ones_like(values))
            turns = self._turns[:]
            del self._turns[: len(turns)]
            for delta, first in turns:
                if first and delta.first_token is not None:
                    self._first_token.observe(delta.first_token - delta.arrival)
                if delta.finish is not None:
                    self._observe_end(delta, delta.finish)

    def _observe_end(self, delta: Delta, finish: FinishReason) -> None:
        """Stages that a request did not reach are not observed."""
        finished = time.monotonic() if delta.finished is None else delta.finished
        self._finished[finish] += 1
        self._latency.observe(finished - delta.arrival)
        self._prompt.observe(delta.num_prompt)
        self._generation.observe(delta.num_output)
        if delta.first_scheduled is None:
            return
        self._queue.observe(delta.first_scheduled - delta.arrival)
        self._inference.observe(finished - delta.first_scheduled)
        if delta.first_token is None:
            return
        self._prefill.observe(delta.first_token - delta.first_scheduled)
        self._decode.observe(finished - delta.first_token)
        if delta.num_output > 1:
            self._per_token.observe((finished - delta.first_token) / (delta.num_output - 1))

    # --- Collector ---

    def collect(self) -> Iterator[Metric]:
        self._fold()
        load = self._client.load()
        yield self._gauge("num_requests_running", "Requests being computed.", load.running)
        yield self._gauge("num_requests_waiting", "Requests that wait for their first step.", load.waiting)
        yield self._gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", load.cache_usage)
        yield self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", load.prefix_queries)
        yield self._counter("prefix_cache_hits", "Tokens that the prefix cache supplied.", load.prefix_hits)
        yield self._counter("num_preemptions", "Requests put back to be computed anew.", load.preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens of admitted requests.", load.prompt_tokens)
        yield self._counter("generation_tokens", "Tokens drawn.", load.generation_tokens)
        ends = CounterMetricFamily(
            "jaxllm_request_success", "Requests that ended, by reason.", labels=["model_name", "finished_reason"]
        )
        for reason, count in self._finished.items():
            ends.add_metric([*self._labels, str(reason)], count)
        yield ends
        programs = CounterMetricFamily(
            "jaxllm_programs_run", "Compiled programs run for steps, by kind.", labels=["model_name", "kind"]
        )
        steps = (("extend", load.steps_extend), ("decode", load.steps_decode), ("encode", load.steps_encode))
        for kind, count in steps:
            programs.add_metric([*self._labels, kind], count)
        yield programs
        yield self._gauge("compile_seconds", "Seconds that compiling took at the start.", self._table.compile_seconds)
        yield self._gauge("program_table_size", "Programs compiled at the start.", self._table.size)
        yield self._cache_config()
        with self._folding:
            yield from [histogram.family(["model_name"], self._labels) for histogram in self._histograms]

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"jaxllm_{name}", documentation, labels=["model_name"])
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(f"jaxllm_{name}", documentation, labels=["model_name"])
        family.add_metric(self._labels, value)
        return family

    def _cache_config(self) -> Metric:
        config = self._client.engine.config
        info = {
            "model_name": self._labels[0],
            "block_size": str(config.block_size),
            "num_gpu_blocks": str(self._client.load().pages_total),
            "enable_prefix_caching": str(config.enable_prefix_caching),
            "gpu_memory_utilization": str(config.gpu_memory_utilization),
        }
        family = GaugeMetricFamily("jaxllm_cache_config_info", "How the KV cache is configured.", labels=list(info))
        family.add_metric(list(info.values()), 1)
        return family

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are this registry's only ones, and collecting at registration would read the engine."""
        return ()
