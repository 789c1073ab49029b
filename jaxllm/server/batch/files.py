"""The two files of a batch: requests, one JSON object a line, and their answers, in the order in which they come.

A request is {"custom_id", "method": "POST", "url", "body"}, an answer {"id", "custom_id", "response": {"status_code",
"request_id", "body"}, "error"}: the response of what the server has answered, errors of its included; the error of a
line that is no request. "id" tells the line's number, so that both kinds can be told from those not answered yet.
Source: OpenAI's Batch API.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic_core import from_json

from jaxllm.errors import ConfigError, JaxllmError, RequestError
from jaxllm.server.http.forms import Strict, read

LINE_BYTES = 256 << 20
"""A request's line at most, whatever bodies the server takes: several of them are held at once."""
_BEGINNING = b'{"id": "batch_req_'
"""Of every answer, as they are written here."""


class Line(Strict):
    """A request of a batch file."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises RequestError."""
        if len(raw) > LINE_BYTES:
            raise RequestError(f"the line is longer than {LINE_BYTES} bytes")
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the line is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RequestError("the line must be an object: {custom_id, method, url, body}")
        line = read(cls, value, "line")
        if not line.custom_id:
            raise RequestError("custom_id is empty: answers are told apart by it", "custom_id")
        if not (line.url.startswith("/") and line.url.isascii()):
            raise RequestError(f"url={line.url!r}: must be a path, such as /v1/chat/completions", "url")
        for field in ("stream", "background"):
            if line.body.get(field):
                raise RequestError(f"body.{field}: a batch's answers come whole; leave it out", field)
        return line


def read_lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers from 1. What is too long is cut behind LINE_BYTES + 1."""
    with source.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_BYTES + 1):
            number += 1
            rest = raw
            while len(rest) == LINE_BYTES + 1 and not rest.endswith(b"\n"):
                rest = file.readline(LINE_BYTES + 1)
            if raw.strip():
                yield number, raw


def name_of(number: int) -> str:
    """The id of a line's answer."""
    return f"batch_req_{number}"


def count_lines(source: Path) -> int:
    """How many hold something."""
    return sum(1 for _ in read_lines(source))


def custom_id_of(raw: bytes) -> str | None:
    """That of a line which may be wrong otherwise."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(raw)
        if isinstance(value, dict) and isinstance(value.get("custom_id"), str):
            return value["custom_id"]
    return None


class Answers:
    """The file of answers, to go on with. One process at a time has it.

    Attributes:
        line_ids: the ids that stand in it. custom_ids: those of the requests that a server has answered: a line that is
            no request does not take its custom id from one that is. Ids alone are held in memory.
    """

    def __init__(self, path: Path):
        """Raises ConfigError for a file that holds something else, or that another run writes to."""
        self.line_ids: set[str] = set()
        self.custom_ids: set[str] = set()
        self._path = path
        try:
            self._file: BinaryIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"{path}: another run writes to it; wait for its end, or name another file") from None
        except ConfigError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def lack(self, source: Path) -> bool:
        """Some line of the requests has no answer yet."""
        seen: set[str] = set()
        for number, raw in read_lines(source):
            try:
                custom_id = Line.parse(raw).custom_id
            except RequestError:
                known = False
            else:
                known = custom_id in self.custom_ids and custom_id not in seen
                seen.add(custom_id)
            if not known and name_of(number) not in self.line_ids:
                return True
        return False

    def answer(self, line_id: str, custom_id: str, status: int, request_id: str | None, body: bytes) -> None:
        """Write what the server answered. body: JSON without line breaks."""
        head = json.dumps({"id": line_id, "custom_id": custom_id})[:-1]
        response = json.dumps({"status_code": status, "request_id": request_id})[:-1]
        self._write(b'%s, "response": %s, "body": %s}, "error": null}\n' % (head.encode(), response.encode(), body))

    def refuse(self, line_id: str, custom_id: str | None, code: str, message: str) -> None:
        """Write why a line was not answered."""
        error = {"code": code, "message": message}
        answer = {"id": line_id, "custom_id": custom_id, "response": None, "error": error}
        self._write(json.dumps(answer).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        """At once: a run that is killed has lost no answer but, at most, a part of its last one."""
        view = memoryview(line)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise JaxllmError(
                f"{self._path}: cannot be written ({error.strerror}); make room and run the same command again"
            ) from error

    def _read(self) -> None:
        """Learn what is answered, and cut off a last line that is torn."""
        with self._path.open("rb") as file:
            end = 0
            for number, line in enumerate(file, 1):
                try:
                    answer = from_json(line)
                    self.line_ids.add(answer["id"])
                    if answer["response"] is not None:
                        self.custom_ids.add(answer["custom_id"])
                except (ValueError, TypeError, KeyError):
                    if line.endswith(b"\n") or not line.startswith(_BEGINNING[: len(line)]):
                        raise ConfigError(
                            f"{self._path}: line {number} is no answer of a batch; move the file away, or name another"
                        ) from None
                    self._file.truncate(end)
                    return
                end += len(line)
                if not line.endswith(b"\n"):
                    self._write(b"\n")
                    return
