"""A batch's two files: what is a request, and how the answers' file is gone on with."""

import json
from pathlib import Path

import pytest

from jaxllm.errors import ConfigError, RequestError
from jaxllm.server.batch import files
from jaxllm.server.batch.files import Answers, Line, count_lines, read_lines

LINE = {"custom_id": "one", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Once"}}


def test_lines_are_read_with_their_numbers(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"a": 1}\n\n  \n{"b": 2}\r\n{"c": 3}')
    assert list(read_lines(source)) == [(1, b'{"a": 1}\n'), (4, b'{"b": 2}\r\n'), (5, b'{"c": 3}')]
    assert count_lines(source) == 3


def test_a_line_that_is_too_long_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_BYTES", 100)
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"x" * 1000 + b"\n" + json.dumps(LINE).encode() + b"\n" + b"y" * 205)
    (first, long), (second, line), (third, last) = read_lines(source)
    assert (first, second, third) == (1, 2, 3)
    assert (len(long), len(last)) == (101, 101)
    assert Line.parse(line).custom_id == "one"
    for raw in (long, last):
        with pytest.raises(RequestError, match="longer than 100 bytes"):
            Line.parse(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "must be an object"),
        (b"{}", "custom_id"),
        (json.dumps(LINE | {"custom_id": ""}).encode(), "custom_id is empty"),
        (json.dumps(LINE | {"custom_id": 7}).encode(), "custom_id"),
        (json.dumps(LINE | {"method": "GET"}).encode(), "method"),
        (json.dumps(LINE | {"url": "https://api.openai.com/v1/completions"}).encode(), "must be a path"),
        (json.dumps(LINE | {"url": "/v1/\ud800"}).encode(), "must be a path"),
        (json.dumps(LINE | {"body": "text"}).encode(), "body"),
        (json.dumps(LINE | {"body": {"stream": True}}).encode(), "body.stream: a batch's answers come whole"),
        (json.dumps(LINE | {"bodies": {}}).encode(), "did you mean 'body'"),
    ],
)
def test_what_is_no_request_is_said(raw: bytes, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Line.parse(raw)
    assert message in str(caught.value)


def test_answers_are_gone_on_with(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with Answers(target) as answers:
        assert answers.line_ids == answers.custom_ids == set()
        answers.answer("batch_req_1", "önë", 200, "cmpl-1", b'{"choices":[]}')
        answers.refuse("batch_req_2", None, "invalid_line", "line 2: no")
    whole = target.read_bytes()
    assert [json.loads(line) for line in whole.splitlines()] == [
        {
            "id": "batch_req_1", "custom_id": "önë", "error": None,
            "response": {"status_code": 200, "request_id": "cmpl-1", "body": {"choices": []}},
        },
        {
            "id": "batch_req_2", "custom_id": None, "response": None,
            "error": {"code": "invalid_line", "message": "line 2: no"},
        },
    ]  # fmt: skip

    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):  # torn anywhere in the last line
        target.write_bytes(whole[:cut])
        with Answers(target) as answers:
            torn = cut < len(whole) - 1
            assert answers.line_ids == {"batch_req_1"} | (set() if torn else {"batch_req_2"})
            assert answers.custom_ids == {"önë"}
            answers.refuse("batch_req_3", "three", "invalid_line", "no")
        kept = whole[:first] if torn else whole
        assert target.read_bytes().startswith(kept)
        assert [json.loads(line)["id"] for line in target.read_bytes().splitlines()][-1] == "batch_req_3"


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    for content in (b"a diary\nof mine", b'{"id": "batch_req_1"}\n', b"7\n", b"notes"):
        target.write_bytes(content)
        with pytest.raises(ConfigError, match="line 1 is no answer of a batch"):
            Answers(target)
        assert target.read_bytes() == content
    with pytest.raises(ConfigError, match="cannot be written"):
        Answers(tmp_path / "nowhere" / "out.jsonl")


def test_one_run_at_a_time_writes(tmp_path: Path) -> None:
    with Answers(tmp_path / "out.jsonl"), pytest.raises(ConfigError, match="another run writes to it"):
        Answers(tmp_path / "out.jsonl")
    Answers(tmp_path / "out.jsonl").__exit__()
