"""Progress: log lines where nobody watches, bars on a terminal; one phase, one line or bar."""

import logging
import threading

import pytest

from jaxllm import progress as module
from jaxllm.progress import progress


def test_log_lines_tell_start_and_end_once(caplog):
    caplog.set_level(logging.INFO)
    with progress(show=False) as report:
        for done in range(101):
            report(done, 100, "compiling")
        report(100, 100, "compiling")
        report(1, 1, "loading")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "compiling: 0 of 100"
    assert [m.split(" in ")[0] for m in messages[1:]] == ["compiling: 100 of 100", "loading: 1 of 1"]


def test_slow_work_is_logged_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress(show=False) as report:
        for done in range(8):
            report(done, 100, "loading")
    assert [r.getMessage() for r in caplog.records] == [f"loading: {n} of 100" for n in (0, 3, 6)]


def test_bars_show_the_last_count(capsys):
    with progress(show=True) as report:
        threads = [threading.Thread(target=report, args=(3, 3, "compiling")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report(1, 2, "loading")
    shown = capsys.readouterr().err
    assert "compiling" in shown
    assert "3/3" in shown
    assert "1/2" in shown


def test_errors_pass_through():
    with pytest.raises(TypeError, match="not supported"), progress(show=False) as report:
        report(0, "none", "loading")
