"""The engine's metrics: every sum follows from the deltas, whichever thread folds them."""

import math
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxllm.core import Delta, FinishReason, Load, SamplingParams
from jaxllm.server.metrics import FOLD_AT, EngineMetrics, Histogram, one_two_five


@dataclass
class Client:
    """What EngineMetrics asks of an EngineClient."""

    snapshot: Load = field(default_factory=Load)
    info = SimpleNamespace(name="tiny", max_model_len=512)
    engine = SimpleNamespace(
        config=SimpleNamespace(block_size=64, enable_prefix_caching=True, gpu_memory_utilization=0.9)
    )
    observers: list = field(default_factory=list)

    def load(self):
        return self.snapshot

    def add_observer(self, observer):
        self.observers.append(observer)


TABLE = SimpleNamespace(compile_seconds=12.5, size=34)


def samples(metrics):
    """{name: {labels but model_name: value}} of the exposition, all of it labelled with the model."""
    found = {}
    for family in text_string_to_metric_families(metrics.render()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == "tiny"
            found.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return found


def value(found, name, **labels):
    return found[name][tuple(sorted(labels.items()))]


def delta(tokens, *, finish=None, output=None, arrival=100.0, scheduled=None, first=None, finished=None):
    return Delta(
        "r", list(range(tokens)), finish=finish, num_prompt=5, num_output=tokens if output is None else output,
        arrival=arrival, first_scheduled=scheduled, first_token=first, finished=finished,
    )  # fmt: skip


def test_buckets_are_inclusive_and_cumulative():
    histogram = Histogram("h", "", (1, 2, 5))
    histogram.observe(1)
    histogram.observe(1.5)
    histogram.observe_all(np.array([2.0, 5.0, 6.0]), np.array([3.0, 1.0, 2.0]))
    samples = {sample.labels.get("le", sample.name): sample.value for sample in histogram.family([], []).samples}
    assert samples == {"1.0": 1, "2.0": 5, "5.0": 6, "+Inf": 8, "h_count": 8, "h_sum": 1 + 1.5 + 6 + 5 + 12}


def test_one_two_five():
    assert one_two_five(512) == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert one_two_five(1) == [1]


def test_a_request_from_arrival_to_end(monkeypatch):
    metrics = EngineMetrics(Client(), TABLE)
    clock = iter((102.0, 102.5))
    monkeypatch.setattr("jaxllm.server.metrics.time", SimpleNamespace(monotonic=lambda: next(clock)))
    params = SamplingParams(max_tokens=30)
    metrics.observe_request(SimpleNamespace(prompt=[1] * 5, max_total=35, params=params))
    metrics.observe_delta(delta(1, output=1, scheduled=100.5, first=101.5), None)
    metrics.observe_delta(delta(4, output=5, scheduled=100.5, first=101.5), 101.5)
    last = delta(1, output=6, scheduled=100.5, first=101.5, finished=102.5, finish=FinishReason.STOP)
    metrics.observe_delta(last, 102.0)
    metrics.observe_step("extend", 5, 0.1)
    metrics.observe_step("decode", 4, 0.1)

    found = samples(metrics)
    for name, total in {
        "time_to_first_token": 1.5, "e2e_request_latency": 2.5, "request_queue_time": 0.5,
        "request_prefill_time": 1.0, "request_decode_time": 1.0, "request_inference_time": 2.0,
        "request_time_per_output_token": 0.2,
    }.items():  # fmt: skip
        assert value(found, f"jaxllm_{name}_seconds_count") == 1, name
        assert value(found, f"jaxllm_{name}_seconds_sum") == pytest.approx(total), name
    assert value(found, "jaxllm_inter_token_latency_seconds_count") == 5  # 6 tokens have 5 intervals between them
    assert value(found, "jaxllm_inter_token_latency_seconds_sum") == pytest.approx(1.0)
    assert value(found, "jaxllm_inter_token_latency_seconds_bucket", le="0.15") == 4
    assert value(found, "jaxllm_request_prompt_tokens_sum") == 5
    assert value(found, "jaxllm_request_generation_tokens_sum") == 6
    assert value(found, "jaxllm_request_params_max_tokens_sum") == 30
    assert value(found, "jaxllm_iteration_tokens_sum") == 9
    assert value(found, "jaxllm_iteration_tokens_count") == 2
    ends = {dict(labels)["finished_reason"]: count for labels, count in found["jaxllm_request_success_total"].items()}
    assert ends == {"stop": 1, "length": 0, "abort": 0, "deadline": 0, "error": 0}


def test_a_request_that_never_ran_is_counted_where_it_was():
    metrics = EngineMetrics(Client(), TABLE)
    metrics.observe_delta(delta(0, finish=FinishReason.DEADLINE, finished=101.0), None)
    found = samples(metrics)
    assert value(found, "jaxllm_e2e_request_latency_seconds_count") == 1
    assert value(found, "jaxllm_request_success_total", finished_reason="deadline") == 1
    for name in ("time_to_first_token", "request_queue_time", "request_prefill_time", "inter_token_latency"):
        assert value(found, f"jaxllm_{name}_seconds_count") == 0


def test_gauges_and_counters_are_the_engines():
    load = Load(
        running=3, waiting=2, pages_total=200, pages_free=50, prefix_queries=70, prefix_hits=64, preemptions=1,
        prompt_tokens=80, generation_tokens=90, steps_extend=4, steps_decode=5,
    )  # fmt: skip
    found = samples(EngineMetrics(Client(load), TABLE))
    expected = {
        "num_requests_running": 3, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.75,
        "prefix_cache_queries_total": 70, "prefix_cache_hits_total": 64, "num_preemptions_total": 1,
        "prompt_tokens_total": 80, "generation_tokens_total": 90, "compile_seconds": 12.5, "program_table_size": 34,
    }  # fmt: skip
    for name, number in expected.items():
        assert value(found, f"jaxllm_{name}") == number, name
    assert value(found, "jaxllm_programs_run_total", kind="extend") == 4
    assert value(found, "jaxllm_programs_run_total", kind="decode") == 5
    (config,) = found["jaxllm_cache_config_info"]
    assert dict(config) == {
        "block_size": "64", "num_gpu_blocks": "200", "enable_prefix_caching": "True", "gpu_memory_utilization": "0.9",
    }  # fmt: skip


def test_names_are_those_that_users_know():
    """vLLM's names, and three of our own."""
    theirs = {
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries",
        "prefix_cache_hits", "num_preemptions", "prompt_tokens", "generation_tokens", "request_success",
        "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens",
        "request_generation_tokens", "request_params_max_tokens", "iteration_tokens", "cache_config_info",
    }  # fmt: skip
    ours = {"programs_run", "compile_seconds", "program_table_size"}
    families = text_string_to_metric_families(EngineMetrics(Client(), TABLE).render())
    assert {family.name for family in families} == {f"jaxllm_{name}" for name in theirs | ours}


def test_histograms_are_well_formed():
    metrics = EngineMetrics(Client(), TABLE)
    metrics.observe_delta(delta(2, scheduled=100.5, first=101.5, finished=103, finish=FinishReason.LENGTH), None)
    families = [family for family in text_string_to_metric_families(metrics.render()) if family.type == "histogram"]
    assert len(families) == 12
    for family in families:
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        bounds = [float(sample.labels["le"]) for sample in buckets]
        counts = [sample.value for sample in buckets]
        assert bounds == sorted(set(bounds))
        assert math.isinf(bounds[-1])
        assert counts == sorted(counts)
        (count,) = [sample.value for sample in family.samples if sample.name.endswith("_count")]
        assert counts[-1] == count


def test_nothing_is_lost_between_threads():
    """The engine's thread notes and folds while another looks."""
    metrics = EngineMetrics(Client(), TABLE)
    steps, rows = 2000, 8
    stop = threading.Event()

    def look():
        while not stop.is_set():
            metrics.render()

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(steps):
        for _ in range(rows):
            metrics.observe_delta(delta(3), 100.0)
        metrics.observe_step("decode", rows * 3, 0.001)
    stop.set()
    looker.join()
    found = samples(metrics)
    assert value(found, "jaxllm_inter_token_latency_seconds_count") == steps * rows * 3
    assert value(found, "jaxllm_iteration_tokens_sum") == steps * rows * 3


def test_notes_are_folded_before_they_pile_up():
    metrics = EngineMetrics(Client(), TABLE)
    for _ in range(4 * FOLD_AT):
        metrics.observe_delta(delta(1), 100.0)
        metrics.observe_step("decode", 1, 0.001)
        assert len(metrics._gaps) + len(metrics._turns) + len(metrics._steps) < FOLD_AT
