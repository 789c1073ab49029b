"""`jaxllm run-batch` as users run it: killed, run again, and held to what a server answers."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from openai_document import OpenApi
from pooled import assert_close, checkpoint, unit
from processes import ROOT, SMALL, Process, Server, until

RUN = (sys.executable, "-m", "jaxllm", "run-batch")


def line(custom_id: str, url: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def answers_of(target: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in target.read_bytes().splitlines()]


def finished(command: list[object]) -> str:
    process = Process([str(part) for part in command])
    try:
        assert process.exit_code(240) == 0, process.output
    finally:
        process.kill()
    return process.output


def test_a_killed_run_is_gone_on_with(tmp_path: Path, stories: Path, server: Server, material: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    words = ["Once", "upon", "a", "time", "there", "was", "the", "cat", "Lily", "dog", "big", "sun"]
    bodies: dict[str, tuple[str, dict[str, Any]]] = {}
    for i in range(48):
        prompt = " ".join(random.choices(words, k=random.randint(1, 6)))
        sampling = {"model": "stories", "max_tokens": random.randint(1, 24), "temperature": 0}
        bodies[f"line-{i}"] = (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}], **sampling})
            if i % 3 == 0
            else ("/v1/completions", {"prompt": prompt, "n": 1 + i % 2, **sampling})
        )
    wrong = {
        "other": ("/v1/completions", {"model": "other", "prompt": "a"}, 404),
        "field": ("/v1/completions", {"promt": "a"}, 400),
        "nowhere": ("/v1/nothing", {}, 404),
        "pooled": ("/v1/embeddings", {"input": "a"}, 400),
    }
    lines = [line(custom_id, url, **body) for custom_id, (url, body) in bodies.items()]
    lines += [line(custom_id, url, **body) for custom_id, (url, body, _) in wrong.items()]
    random.shuffle(lines)
    lines += ["no JSON\n", "\n", line("line-7", "/v1/completions", prompt="again")]
    source.write_text("".join(lines))
    command = [
        *RUN, source, target, "--model", stories, "--served-model-name", "stories",
        "--chat-template", ROOT / "jaxllm/demo_model/chat_template.jinja", *SMALL,
    ]  # fmt: skip

    process = Process([str(part) for part in command])
    try:
        until(lambda: target.exists() and target.read_bytes().count(b"\n") > 5, seconds=120)
        process.signal(signal.SIGKILL)
        process.exit_code(20)
    finally:
        process.kill()
    before = target.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert 5 < whole.count(b"\n") < len(lines) - 1
    target.write_bytes(whole + b'{"id": "batch_req_99", "custom_id": "line')

    output = finished(command)
    assert target.read_bytes().startswith(whole)
    assert f"{len(lines) - 1 - whole.count(b'\n')} answered" in output, output
    answers = answers_of(target)
    by_id = {answer["custom_id"]: answer for answer in answers if answer["response"] is not None}
    assert Counter(answer["custom_id"] for answer in answers) == Counter([*bodies, *wrong, None, "line-7"])
    for custom_id, (_, _, status) in wrong.items():
        response = by_id[custom_id]["response"]
        assert (response["status_code"], set(response["body"])) == (status, {"error"})
    codes = {answer["error"]["code"]: answer["id"] for answer in answers if answer["error"] is not None}
    assert codes == {"invalid_line": f"batch_req_{len(lines) - 2}", "duplicate_custom_id": f"batch_req_{len(lines)}"}

    document = OpenApi.load(material)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for custom_id in random.sample(sorted(bodies), 10):
            url, body = bodies[custom_id]
            response = by_id[custom_id]["response"]
            assert response["status_code"] == 200, response
            assert response["request_id"] == response["body"]["id"]
            chat = url == "/v1/chat/completions"
            document.check("CreateChatCompletionResponse" if chat else "CreateCompletionResponse", response["body"])
            if not chat:  # the server here has no chat template
                served = client.post(url, json=body).json()
                assert response["body"]["choices"] == served["choices"]
                assert response["body"]["usage"]["total_tokens"] == served["usage"]["total_tokens"]


def test_embeddings_and_scores(tmp_path: Path) -> None:
    recorded = checkpoint("qwen3-embedding", tmp_path / "embedder")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    expected = [unit(states[-1]) for states in recorded.hidden]
    order = [random.randrange(len(expected)) for _ in range(50)]
    lines = [line(f"{n}", "/v1/embeddings", input=recorded.texts[i]) for n, i in enumerate(order)]
    lines.append(line("score", "/v1/score", text_1=recorded.texts[0], text_2=recorded.texts))
    lines.append(line("many", "/v1/embeddings", input=recorded.ids * 20))
    lines.append(line("completion", "/v1/completions", prompt="w1"))
    source.write_text("".join(lines))
    command = [*RUN, source, target, "--model", recorded.folder, *SMALL]
    assert "53 answered, 1 of them with errors" in finished(command)
    written = target.read_bytes()
    assert "0 answered, 0 of them with errors, 53 before" in finished(command)
    assert target.read_bytes() == written
    bodies = {answer["custom_id"]: answer["response"]["body"] for answer in answers_of(target)}
    for n, i in enumerate(order):
        assert_close(bodies[str(n)]["data"][0]["embedding"], expected[i])
    for one, own in zip(bodies["many"]["data"], expected * 20, strict=True):
        assert_close(one["embedding"], own)
    assert_close([one["score"] for one in bodies["score"]["data"]], [expected[0] @ other for other in expected])
    assert "generates nothing" in bodies["completion"]["error"]["message"]


def test_wrong_files_are_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"

    def message(*arguments: object) -> str:
        result = subprocess.run([*RUN, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT)
        assert result.returncode == 2
        return " ".join(result.stderr.split())

    assert "no such file" in message(source, tmp_path / "out.jsonl")
    source.write_text(line("one", "/v1/completions", prompt="a"))
    assert "holds the requests" in message(source, source)
    (tmp_path / "out.jsonl").write_text("a diary\n")
    assert "line 1 is no answer of a batch" in message(source, tmp_path / "out.jsonl")
