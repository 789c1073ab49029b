"""What the server says of itself against what it does: /openapi.json by schemathesis, /metrics as promtool does."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from processes import ROOT, Server
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

LEAST_CASES = 300
SEED = os.environ.get("JAXLLM_FUZZ_SEED", "20261123")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.mark.timeout(600)
def test_thousands_of_requests_and_every_answer_is_declared(server: Server):
    command = (sys.executable, ROOT / "scripts/fuzz_http.py", server.url, "--model", "stories", "--fuzzing-only")
    done = subprocess.run(
        [*command, "--max-examples", "20", "--seed", SEED],
        capture_output=True, text=True, timeout=590, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (generated,) = re.findall(r"(\d+) generated", done.stdout)
    assert int(generated) >= LEAST_CASES, done.stdout
    assert httpx.get(server.url + "/health", timeout=10).status_code == 200


def test_every_operation_says_what_it_may_answer(server: Server):
    document = httpx.get(server.url + "/openapi.json", timeout=10).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"200", "400", "401", "413", "429", "503"} <= operation["responses"].keys(), (method, path)
            assert "422" not in operation["responses"]
    completions = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
    assert completions.keys() == {"application/json", "text/event-stream"}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', httpx.get(server.url + "/openapi.json").text))
    assert references <= document["components"]["schemas"].keys()


def lint(families: list[Metric]) -> Iterator[str]:
    """What `promtool check metrics` would say of these, by the rules of Prometheus' promlint."""
    units = {
        "minutes", "hours", "days", "weeks", "milliseconds", "microseconds", "nanoseconds", "kilobytes", "megabytes",
        "gigabytes", "kelvins", "percent", "ms", "us", "ns", "sec", "kb", "mb", "gb", "s", "b", "h", "m", "d",
    }  # fmt: skip
    for family in families:
        name = family.name
        if not family.documentation:
            yield f"{name}: no help text"
        if ":" in name:
            yield f"{name}: colons are for recording rules"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield f"{name}: no snake_case"
        if units & set(name.split("_")):
            yield f"{name}: no base unit"
        if re.search(r"_(counter|gauge|histogram|summary|untyped)($|_)", name):
            yield f"{name}: its type is in its name"
        if family.type in ("untyped", "unknown"):
            yield f"{name}: no type"
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith(("_total", "_created")):
                yield f"{sample.name}: a counter's name ends with _total"
            if family.type != "counter" and name.endswith("_total"):
                yield f"{name}: only a counter's name ends with _total"
            if family.type not in ("histogram", "summary") and name.endswith(("_count", "_sum", "_bucket")):
                yield f"{name}: that is a histogram's name"
            for label in sample.labels:
                if not re.fullmatch(r"[a-z][a-z0-9_]*", label):
                    yield f"{name}: label {label} is no snake_case"
    for name, count in itertools.groupby(sorted(family.name for family in families)):
        if len(list(count)) > 1:
            yield f"{name}: stands there twice"


def test_metrics_are_as_promtool_wants_them(server: Server):
    completion = {"prompt": "Once", "max_tokens": 3}
    assert httpx.post(server.url + "/v1/completions", json=completion, timeout=30).status_code == 200
    text = httpx.get(server.url + "/metrics", timeout=10)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(read_text(text.text))
    assert len(families) > 30
    assert list(lint(families)) == []
    series = [(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples]
    assert len(series) == len(set(series))

    strict = httpx.get(server.url + "/metrics", headers={"accept": OPENMETRICS}, timeout=10)
    assert strict.headers["content-type"].startswith(OPENMETRICS)
    found = list(read_openmetrics(strict.text))  # strict: it raises for whatever the standard forbids
    # When a series began is a family of its own in the older form alone.
    assert {family.name for family in found} == {f.name for f in families if not f.name.endswith("_created")}


PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
def test_metrics_pass_promtool_itself(server: Server):
    def check(text: str) -> subprocess.CompletedProcess[str]:
        command = (str(PROMTOOL), "check", "metrics")
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    completion = {"prompt": "Once", "max_tokens": 3}
    assert httpx.post(server.url + "/v1/completions", json=completion, timeout=30).status_code == 200
    done = check(httpx.get(server.url + "/metrics", timeout=10).text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert check("a_total 1\n").returncode != 0


def test_the_check_of_metrics_can_fail():
    text = (
        "# TYPE a:b gauge\na:b 1\n# HELP c_total Good.\n# TYPE c_total gauge\nc_total 1\n"
        "# HELP d_ms Wait.\n# TYPE d_ms gauge\nd_ms 1\n# HELP e Some.\n# TYPE e counter\ne 1\n# HELP f_count N.\n"
        '# TYPE f_count gauge\nf_count{aB="1"} 1\n'
    )
    said = "\n".join(lint(list(read_text(text))))
    for fault in ("no help", "colons", "only a counter", "no base unit", "ends with _total", "histogram's", "label aB"):
        assert fault in said
