"""The figures of a benchmark on requests whose numbers are known by hand."""

import pytest

from jaxllm.bench.statistics import Record, meets, parse_objectives, report, samples, summarise
from jaxllm.errors import ConfigError

# Five tokens in three arrivals: TTFT 100 ms, E2E 500 ms, TPOT (500 - 100) / 4 = 100 ms, gaps 150 and 250 ms.
SLOW = Record(num_prompt=10, sent=1.0, arrivals=[1.1, 1.25, 1.5], num_output=5)
# One token: no TPOT, no gap.
SHORT = Record(num_prompt=20, sent=2.0, arrivals=[2.05], num_output=1)
FAILED = Record(num_prompt=40, sent=2.0, error="RESOURCE_EXHAUSTED")


def test_one_request():
    assert SLOW.ttft == pytest.approx(0.1)
    assert SLOW.e2el == pytest.approx(0.5)
    assert SLOW.tpot == pytest.approx(0.1)
    assert SLOW.itl == pytest.approx([0.15, 0.25])
    assert SHORT.tpot is None
    assert SHORT.itl == []
    assert not FAILED.completed


def test_samples_leave_out_what_does_not_exist():
    values = samples([SLOW, SHORT, FAILED])
    assert {name: len(v) for name, v in values.items()} == {"ttft": 2, "tpot": 1, "itl": 2, "e2el": 2}


def test_summary_of_known_numbers():
    summary = summarise([n / 1000 for n in range(1, 102)])  # 1 to 101 ms
    assert summary["mean"] == pytest.approx(51)
    assert summary["median"] == pytest.approx(51)
    assert summary["p90"] == pytest.approx(91)
    assert summary["p99"] == pytest.approx(100)
    assert summary["std"] == pytest.approx(((101**2 - 1) / 12) ** 0.5)
    assert summarise([]) == {}


def test_report_counts_only_what_completed():
    row = report([SLOW, SHORT, FAILED], seconds=2.0)
    assert (row["completed"], row["failed"], row["duration"]) == (2, 1, 2.0)
    assert (row["total_input_tokens"], row["total_output_tokens"]) == (30, 6)
    assert row["request_throughput"] == 1.0
    assert row["output_throughput"] == 3.0
    assert row["total_token_throughput"] == 18.0
    assert row["mean_ttft_ms"] == pytest.approx(75)
    assert row["median_itl_ms"] == pytest.approx(200)
    assert row["p99_tpot_ms"] == pytest.approx(100)
    assert "request_goodput" not in row


def test_goodput_needs_every_objective():
    assert meets(SLOW, {"ttft": 0.11, "tpot": 0.11, "e2el": 0.51})
    assert not meets(SLOW, {"ttft": 0.11, "tpot": 0.09})
    assert meets(SHORT, {"tpot": 0.001})
    assert report([SLOW, SHORT, FAILED], 2.0, {"ttft": 0.06})["request_goodput"] == 0.5


def test_objectives_are_milliseconds():
    assert parse_objectives(["ttft:200", "tpot:12.5"]) == {"ttft": 0.2, "tpot": 0.0125}
    for text in ("ttft", "ttft:x", "ttft:-1", "speed:3", "ttft:nan"):
        with pytest.raises(ConfigError, match="goodput"):
            parse_objectives([text])
