"""Lines of a batch on their way through an application that is scripted here."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxllm.errors import EngineDeadError
from jaxllm.server.batch import run
from jaxllm.server.batch.files import Answers
from jaxllm.server.batch.run import Batch


class ScriptedApplication:
    """Has room for so many prompts at once; each takes a moment. The body says how many it holds."""

    def __init__(self, room: int):
        self.room = room
        self.most = self.running = self.refused = 0
        self.client = SimpleNamespace(
            capacity=room, alive=True,
            engine=SimpleNamespace(
                death="of old age", runner=SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=3))
            ),
        )  # fmt: skip

    async def post(self, url: str, body: bytes) -> tuple[int, str | None, bytes]:
        prompts = json.loads(body)["prompts"]
        if url == "/die":
            self.client.alive = False
            return 503, None, b'{"error": "dead"}'
        if prompts > self.room - self.running:
            self.refused += 1
            return 429, None, b'{"error": "full"}'
        self.running += prompts
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.005)
        self.running -= prompts
        return 200, "id", body


def line(custom_id: str, prompts: int = 1, url: str = "/go") -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompts": prompts}}).encode()


async def answer(app: ScriptedApplication, target: Path, lines: list[bytes]) -> tuple[Batch, list[dict[str, Any]]]:
    with Answers(target) as answers:
        batch = Batch(app.client, app, answers)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            for number, raw in enumerate(lines, 1):
                await batch.start(tasks, number, raw)
    return batch, [json.loads(line) for line in target.read_bytes().splitlines()]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RETRY_SECONDS", 0.001)


async def test_lines_run_side_by_side_but_not_all_at_once(tmp_path: Path) -> None:
    app = ScriptedApplication(room=100)
    batch, answers = await answer(app, tmp_path / "out", [line(str(n)) for n in range(50)])
    assert app.most == 6  # two steps' worth
    assert sorted(int(one["custom_id"]) for one in answers) == list(range(50))
    assert (batch.summary.answered, batch.summary.errors, batch.summary.skipped) == (50, 0, 0)


async def test_a_lost_connection_is_no_answer(tmp_path: Path) -> None:
    app = ScriptedApplication(room=10)
    lost = {"0", "3"}

    async def post(url: str, body: bytes) -> tuple[int, str | None, bytes]:
        if (name := json.loads(body)["name"]) in lost:
            lost.remove(name)
            return 503, None, b'{"error": "the connection to the engine broke"}'
        return await ScriptedApplication.post(app, url, body)

    app.post = post  # type: ignore[method-assign]
    lines = [json.dumps(json.loads(line(name)) | {"body": {"prompts": 1, "name": name}}).encode() for name in "0123"]
    batch, answers = await answer(app, tmp_path / "out", lines)
    assert not lost
    assert [one["response"]["status_code"] for one in answers] == [200] * 4
    assert batch.summary.errors == 0


async def test_lines_of_many_prompts_wait_for_room(tmp_path: Path) -> None:
    app = ScriptedApplication(room=10)
    sizes = {str(n): 1 + n % 12 for n in range(40)}  # 11 and 12 never fit
    batch, answers = await answer(app, tmp_path / "out", [line(name, size) for name, size in sizes.items()])
    assert app.refused > 0
    found = {one["custom_id"]: one["response"]["status_code"] for one in answers}
    assert found == {name: 200 if size <= 10 else 429 for name, size in sizes.items()}
    assert len(answers) == 40
    assert batch.summary.errors == sum(size > 10 for size in sizes.values())


async def test_nothing_is_told_of_lines_that_a_dead_engine_left(tmp_path: Path) -> None:
    app = ScriptedApplication(room=10)
    lines = [line("first"), line("last", url="/die"), *(line(str(n)) for n in range(50))]
    with pytest.raises(ExceptionGroup) as caught:
        await answer(app, tmp_path / "out", lines)
    assert caught.group_contains(EngineDeadError, match="of old age")
    told = {json.loads(line)["custom_id"] for line in (tmp_path / "out").read_bytes().splitlines()}
    assert "last" not in told

    # The next run goes on with them.
    app = ScriptedApplication(room=10)
    lines[1] = line("last")
    batch, answers = await answer(app, tmp_path / "out", lines)
    assert batch.summary.skipped == len(told)
    assert len(answers) == 52
    assert {one["response"]["status_code"] for one in answers} == {200}


async def test_what_is_wrong_with_lines_is_told_once(tmp_path: Path) -> None:
    # What is no request takes nobody's custom id, and a custom id may be what some line's answer is called.
    lines = [line("a"), b"{", line("b"), line("a", 2), b'{"custom_id": "c"}', line("c"), line("batch_req_9"), line("d")]
    lines.append(line("e"))
    source = tmp_path / "in"
    for count in range(1, len(lines) + 1):
        source.write_bytes(b"\n".join(lines[:count]))
        with Answers(tmp_path / "out") as answers_so_far:
            assert answers_so_far.lack(source)
        await answer(ScriptedApplication(room=10), tmp_path / "out", lines[:count])
        with Answers(tmp_path / "out") as answers_so_far:
            assert not answers_so_far.lack(source)
    in_parts = sorted((tmp_path / "out").read_bytes().splitlines())
    (tmp_path / "out").unlink()
    for run_number in range(2):
        batch, answers = await answer(ScriptedApplication(room=10), tmp_path / "out", lines)
        assert (batch.summary.skipped, batch.summary.answered) == ((0, 9), (9, 0))[run_number]
    assert sorted((tmp_path / "out").read_bytes().splitlines()) == in_parts
    by_id = {one["id"]: one for one in answers}
    assert len(answers) == len(by_id) == 9
    expected = ["a", None, "b", "a", "c", "c", "batch_req_9", "d", "e"]
    assert [by_id[f"batch_req_{n}"]["custom_id"] for n in range(1, 10)] == expected
    assert {by_id[f"batch_req_{n}"]["response"]["status_code"] for n in (1, 3, 6, 7, 8, 9)} == {200}
    assert by_id["batch_req_1"]["response"]["body"] == {"prompts": 1}
    assert by_id["batch_req_4"]["error"]["code"] == "duplicate_custom_id"
    assert {by_id[f"batch_req_{n}"]["error"]["code"] for n in (2, 5)} == {"invalid_line"}
