"""Models that generate nothing behind the servers, over grpcio, HTTP and OpenAI's client, against transformers."""

import base64
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
from openai_document import OpenApi
from pooled import Recorded, assert_close, checkpoint, sigmoid, unit
from processes import SMALL, Server, serving, until

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

MANY = 20_000  # inputs: a call that takes seconds


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def embedder(folders: Path) -> Iterator[tuple[Server, Recorded]]:
    """It takes requests by priority."""
    recorded = checkpoint("qwen3-embedding", folders / "embedder")
    arguments = ("--model", recorded.folder, "--http-port", "0", "--scheduling-policy", "priority", *SMALL)
    arguments += ("--enable-log-requests", "--max-prompts", str(MANY))
    with serving(*arguments) as server:
        yield server, recorded


@pytest.fixture(scope="module")
def crosser(folders: Path) -> Iterator[tuple[Server, Recorded]]:
    recorded = checkpoint("bert-pairs", folders / "crosser")
    with serving("--model", recorded.folder, "--http-port", "0", "--task", "score", *SMALL) as server:
        yield server, recorded


@pytest.fixture(scope="module")
def openapi(material: Path) -> OpenApi:
    return OpenApi.load(material)


def texts(*contents: str | list[int]) -> list[pb.PoolingInput]:
    return [
        pb.PoolingInput(text=one) if isinstance(one, str) else pb.PoolingInput(token_ids=pb.TokenIds(ids=one))
        for one in contents
    ]


def post(server: Server, path: str, **body: Any) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Server, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def status(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# --- gRPC ---


def test_embeddings_over_grpc(embedder: tuple[Server, Recorded]) -> None:
    server, recorded = embedder
    expected = [unit(states[-1]) for states in recorded.hidden]
    request = pb.EmbedRequest(request_id="mine", inputs=texts(*recorded.texts, *recorded.ids))
    answer = server.inference.Embed(request, timeout=60)
    assert answer.request_id == "mine"
    for vector, own in zip(answer.embeddings, expected * 2, strict=True):
        assert_close(vector.values, own)
    assert list(answer.prompt_tokens) == [len(ids) for ids in recorded.ids] * 2

    request = pb.EmbedRequest(
        inputs=texts(recorded.texts[-1]), dimensions=5,
        options=pb.PoolingOptions(use_activation=False, truncate_prompt_tokens=len(recorded.ids[-1])),
    )  # fmt: skip
    answer = server.inference.Embed(request, timeout=60)
    assert answer.request_id.startswith("pool-")
    assert_close(answer.embeddings[0].values, recorded.hidden[-1][-1][:5])


def test_plain_numbers_over_grpc(embedder: tuple[Server, Recorded]) -> None:
    server, recorded = embedder
    options = pb.PoolingOptions(use_activation=False)
    request = pb.PoolRequest(inputs=texts(*recorded.texts), task=pb.POOLING_TASK_TOKEN_EMBED, options=options)
    answer = server.inference.Pool(request, timeout=60)
    assert answer.per_token
    for own, states in zip(answer.data, recorded.hidden, strict=True):
        assert_close(np.reshape(own.values, (-1, own.columns)), states)
    answer = server.inference.Pool(pb.PoolRequest(inputs=texts(recorded.texts[0])), timeout=60)
    assert not answer.per_token
    assert_close(answer.data[0].values, unit(recorded.hidden[0][-1]))


def test_scores_and_classes_over_grpc(embedder: tuple[Server, Recorded], crosser: tuple[Server, Recorded]) -> None:
    server, recorded = embedder
    vectors = [unit(states[-1]) for states in recorded.hidden]
    request = pb.ScoreRequest(queries=texts(recorded.texts[0]), documents=texts(*recorded.texts))
    answer = server.inference.Score(request, timeout=60)
    assert_close(answer.scores, np.array([vectors[0] @ other for other in vectors]))
    lengths = [len(ids) for ids in recorded.ids]
    assert list(answer.prompt_tokens) == [lengths[0] + length for length in lengths]
    assert answer.total_tokens == lengths[0] + sum(lengths)

    server, recorded = crosser
    which = [i for i, types in enumerate(recorded.types) if 0 in types]
    queries, documents = zip(*map(recorded.pair, which), strict=True)
    expected = sigmoid(np.concatenate([recorded.outputs[i] for i in which]))
    answer = server.inference.Score(pb.ScoreRequest(queries=texts(*queries), documents=texts(*documents)), timeout=60)
    assert_close(answer.scores, expected)
    assert list(answer.prompt_tokens) == [len(recorded.ids[i]) for i in which]
    i = next(i for i, types in enumerate(recorded.types) if 1 not in types)
    answer = server.inference.Classify(pb.ClassifyRequest(inputs=texts(recorded.texts[i])), timeout=60)
    assert_close(answer.probs[0].values, sigmoid(recorded.outputs[i]))
    assert list(answer.labels) == ["LABEL_0"]


def test_the_model_tells_its_task(embedder: tuple[Server, Recorded], crosser: tuple[Server, Recorded]) -> None:
    info = embedder[0].control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    assert (info.task, info.pooling.size, info.pooling.scores, info.pooling.per_token) == ("embed", 36, True, True)
    info = crosser[0].control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    assert (info.task, info.pooling.size, info.pooling.scores, info.pooling.per_token) == ("classify", 1, True, False)
    assert list(info.pooling.labels) == ["LABEL_0"]


def test_what_a_model_does_not_do_is_said(
    embedder: tuple[Server, Recorded], crosser: tuple[Server, Recorded], server: Server
) -> None:
    inputs, invalid = texts("w1"), grpc.StatusCode.INVALID_ARGUMENT
    for one in (embedder[0], crosser[0]):
        for request in (
            pb.GenerateRequest(text="w1"),
            pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="w1")])),
        ):
            code, message = status(lambda one=one, request=request: one.inference.Generate(request, timeout=60))
            assert (code, "generates nothing: it is here to" in message) == (invalid, True)
    for call, request in (
        (server.inference.Embed, pb.EmbedRequest(inputs=inputs)),
        (server.inference.Classify, pb.ClassifyRequest(inputs=inputs)),
        (server.inference.Pool, pb.PoolRequest(inputs=inputs)),
        (server.inference.Score, pb.ScoreRequest(queries=inputs, documents=inputs)),
    ):
        code, message = status(lambda call=call, request=request: call(request, timeout=60))
        assert (code, "start the engine with task=" in message) == (invalid, True), message
    assert server.control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10).task == "generate"

    for path, body in (
        ("/v1/embeddings", {"input": "w1"}), ("/v1/classify", {"input": "w1"}), ("/pooling", {"input": "w1"}),
        ("/v1/score", {"text_1": "w1", "text_2": "w2"}), ("/rerank", {"query": "w1", "documents": ["w2"]}),
    ):  # fmt: skip
        error = refused(server, path, **body)
        assert "start the engine with task=" in error["message"]
    assert "made for embed" in refused(embedder[0], "/classify", input="w1")["message"]
    assert "made for classify" in refused(crosser[0], "/v1/embeddings", input="w1")["message"]
    error = refused(embedder[0], "/v1/completions", prompt="w1")
    assert "generates nothing: it is here to embed" in error["message"]
    error = refused(embedder[0], "/v1/chat/completions", messages=[{"role": "user", "content": "w1"}])
    assert "generates nothing: it is here to embed" in error["message"]


def test_faults_name_their_field(embedder: tuple[Server, Recorded]) -> None:
    server, _ = embedder
    cases = [
        (pb.EmbedRequest(), "inputs has 0 entries"),
        (pb.EmbedRequest(inputs=texts("w1") * (MANY + 1)), f"at most {MANY} here (--max-prompts)"),
        (pb.EmbedRequest(inputs=[pb.PoolingInput()]), r"inputs[0] is empty"),
        (pb.EmbedRequest(inputs=texts("w1", [97])), "input 1: prompt holds 97"),
        (pb.EmbedRequest(inputs=texts("w1"), dimensions=37), "dimensions=37"),
        (pb.EmbedRequest(inputs=texts(" ".join(["w1"] * 65))), "65 tokens"),
        (pb.EmbedRequest(inputs=texts("w1"), options=pb.PoolingOptions(truncate_prompt_tokens=-2)), "truncate_prompt"),
        (pb.EmbedRequest(inputs=texts("w1"), options=pb.PoolingOptions(timeout_seconds=-1)), "timeout_seconds=-1"),
    ]
    for request, sentence in cases:
        code, message = status(lambda request=request: server.inference.Embed(request, timeout=60))
        assert (code, sentence in message) == (grpc.StatusCode.INVALID_ARGUMENT, True), message
    request = pb.EmbedRequest(inputs=texts("w1"), model="another")
    assert status(lambda: server.inference.Embed(request, timeout=60))[0] is grpc.StatusCode.NOT_FOUND


def many(**options: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(
        request_id="many", inputs=texts([5] * 40) * MANY, options=pb.PoolingOptions(priority=1, **options)
    )


def test_the_log_tells_of_each_call(embedder: tuple[Server, Recorded]) -> None:
    server, recorded = embedder
    tokens = sum(map(len, recorded.ids))
    request = pb.EmbedRequest(request_id="told", inputs=texts(*recorded.ids))
    _, call = server.inference.Embed.with_call(request, timeout=60, metadata=(("x-request-id", "by-grpc"),))
    assert ("x-request-id", "by-grpc") in [tuple(pair) for pair in call.initial_metadata()]
    answer = httpx.post(
        f"{server.url}/v1/embeddings", json={"input": recorded.ids}, headers={"x-request-id": "by-http"}, timeout=60
    )
    assert answer.headers["x-request-id"] == "by-http"
    status(lambda: server.inference.Embed(pb.EmbedRequest(request_id="odd", inputs=texts([97])), timeout=60))

    def told(text: str) -> bool:
        return any(text in line for line in server.process.lines)

    until(lambda: told(f"request told (by-grpc): stop; {tokens} prompt tokens"))
    until(lambda: told(f"request {answer.json()['id']} (by-http): stop; {tokens} prompt tokens"))
    until(lambda: told("request odd: INVALID_ARGUMENT, prompt holds 97"))


def idle(server: Server) -> bool:
    load = server.load()
    return load.running == load.waiting == 0


def test_long_calls_end_when_they_are_to_and_hold_nobody_up(embedder: tuple[Server, Recorded]) -> None:
    server, recorded = embedder
    code, _ = status(lambda: server.inference.Embed(many(), timeout=1.5))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: idle(server))
    code, message = status(lambda: server.inference.Embed(many(timeout_seconds=1.5), timeout=60))
    assert (code, "deadline passed" in message) == (grpc.StatusCode.DEADLINE_EXCEEDED, True)
    until(lambda: idle(server))

    leaving = server.inference.Embed.future(many(), timeout=60)
    until(lambda: not idle(server))
    # A more urgent call does not wait for the many before it, and its id is taken meanwhile.
    answer = server.inference.Embed(pb.EmbedRequest(inputs=texts(recorded.texts[2])), timeout=60)
    assert_close(answer.embeddings[0].values, unit(recorded.hidden[2][-1]))
    assert not leaving.done()
    taken = pb.EmbedRequest(request_id="many", inputs=texts("w1"))
    assert status(lambda: server.inference.Embed(taken, timeout=60))[0] is grpc.StatusCode.ALREADY_EXISTS
    leaving.cancel()
    until(lambda: idle(server))

    aborted = server.inference.Embed.future(many(), timeout=60)
    until(lambda: not idle(server))
    assert server.control.Abort(pb.AbortRequest(request_id="many"), timeout=10).aborted == 1
    assert aborted.code() is grpc.StatusCode.ABORTED
    until(lambda: idle(server))


def test_a_client_that_leaves_the_front_ends_its_call(embedder: tuple[Server, Recorded]) -> None:
    server, _ = embedder
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/embeddings", json={"input": [[5] * 40] * MANY}, timeout=httpx.Timeout(60, read=2))
    until(lambda: idle(server))
    lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    assert "jaxllm_http_client_disconnects_total 1.0" in lines


def test_concurrent_calls_have_each_their_own(embedder: tuple[Server, Recorded]) -> None:
    server, recorded = embedder
    expected = [unit(states[-1]) for states in recorded.hidden]
    wrong: list[object] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        try:
            for _ in range(5):
                which = draw.choices(range(len(recorded.ids)), k=draw.randint(1, 20))
                request = pb.EmbedRequest(inputs=texts(*(recorded.texts[i] for i in which)))
                answer = server.inference.Embed(request, timeout=60)
                for vector, i in zip(answer.embeddings, which, strict=True):
                    assert_close(vector.values, expected[i])
        except Exception as error:
            wrong.append(error)

    clients = [threading.Thread(target=client, args=(random.randrange(2**32),)) for _ in range(8)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert wrong == []
    load = server.load()
    assert load.steps_encode > 0


# --- HTTP ---


def test_timings_on_demand(embedder: tuple[Server, Recorded], crosser: tuple[Server, Recorded]) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": ["w1", "w2"]}, "/pooling": {"input": "w1"},
        "/v1/score": {"text_1": "w1", "text_2": ["w2", "w3"]}, "/v1/rerank": {"query": "w1", "documents": ["w2", "w3"]},
    }  # fmt: skip
    asked = [(embedder[0], path, body) for path, body in bodies.items()]
    asked += [(crosser[0], "/v1/classify", {"input": "w1"}), (crosser[0], "/v1/score", bodies["/v1/score"])]
    for server, path, body in asked:
        began = time.monotonic()
        timings = post(server, path, **body, return_timings=True)["timings"]
        assert timings.keys() == set(pb.Timings.DESCRIPTOR.fields_by_name)
        assert 0 < timings["prefill_seconds"] < timings["total_seconds"] < time.monotonic() - began
        assert timings["queue_seconds"] + timings["prefill_seconds"] == pytest.approx(timings["total_seconds"])
        assert "timings" not in post(server, path, **body)


def test_embeddings_over_openais_client(embedder: tuple[Server, Recorded], openapi: OpenApi) -> None:
    server, recorded = embedder
    expected = [unit(states[-1]) for states in recorded.hidden]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for given, which in (
            (recorded.texts, [0, 1, 2, 3]), (recorded.texts[1], [1]), (recorded.ids, [0, 1, 2, 3]),
            (recorded.ids[2], [2]),
        ):  # fmt: skip
            # Without encoding_format the client asks for base64 and decodes it.
            plain = client.embeddings.create(model="embedder", input=given)
            floats = client.embeddings.create(model="embedder", input=given, encoding_format="float", user="someone")
            for answer in (plain, floats):
                for index, (one, i) in enumerate(zip(answer.data, which, strict=True)):
                    assert one.index == index
                    assert_close(one.embedding, expected[i])
                tokens = sum(len(recorded.ids[i]) for i in which)
                assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
        short = client.embeddings.create(model="embedder", input=recorded.texts[3], dimensions=4)
        assert_close(short.data[0].embedding, unit(recorded.hidden[3][-1][:4]))
        assert [model.id for model in client.models.list()] == ["embedder"]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="another", input="w1")
        with pytest.raises(openai.BadRequestError, match="dimensions=99"):
            client.embeddings.create(model="embedder", input="w1", dimensions=99)
    for body in ({"input": recorded.texts}, {"input": recorded.ids[0], "dimensions": 3}):
        openapi.check("CreateEmbeddingResponse", post(server, "/v1/embeddings", **body))
    answer = post(server, "/v1/embeddings", input=recorded.texts[0], encoding_format="base64")
    raw = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert_close(raw, expected[0])


async def test_embeddings_over_openais_asynchronous_client(embedder: tuple[Server, Recorded]) -> None:
    import asyncio

    server, recorded = embedder
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        order = [random.randrange(len(recorded.ids)) for _ in range(24)]
        answers = await asyncio.gather(
            *(client.embeddings.create(model="embedder", input=recorded.texts[i]) for i in order)
        )
    for answer, i in zip(answers, order, strict=True):
        assert_close(answer.data[0].embedding, unit(recorded.hidden[i][-1]))


def test_every_field_of_openais_embeddings_is_known(openapi: OpenApi) -> None:
    from jaxllm.server.http.pooling.reading import EmbeddingRequest

    assert openapi.properties("CreateEmbeddingRequest") <= set(EmbeddingRequest.model_fields)


def test_scores_and_rankings_over_http(crosser: tuple[Server, Recorded], embedder: tuple[Server, Recorded]) -> None:
    server, recorded = crosser
    which = [i for i, types in enumerate(recorded.types) if 0 in types]
    queries, documents = map(list, zip(*map(recorded.pair, which), strict=True))
    expected = sigmoid(np.concatenate([recorded.outputs[i] for i in which]))
    for path, body in (
        ("/v1/score", {"text_1": queries, "text_2": documents}),
        ("/score", {"queries": queries, "documents": documents, "model": "crosser", "user": "someone"}),
    ):
        answer = post(server, path, **body)
        assert (answer["object"], answer["model"]) == ("list", "crosser")
        assert answer["id"].startswith("score-")
        assert [(one["index"], one["object"]) for one in answer["data"]] == [(i, "score") for i in range(len(which))]
        assert_close([one["score"] for one in answer["data"]], expected)
        tokens = sum(len(recorded.ids[i]) for i in which)
        assert answer["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}

    scores = [one["score"] for one in post(server, "/score", text_1=queries[-1], text_2=documents)["data"]]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answer = post(server, path, query=queries[-1], documents=[documents[0], *({"text": d} for d in documents[1:])])
        assert [one["index"] for one in answer["results"]] == order
        assert [one["document"]["text"] for one in answer["results"]] == [documents[i] for i in order]
        assert_close([one["relevance_score"] for one in answer["results"]], np.array(scores)[order])
        best = post(server, path, query=queries[-1], documents=documents, top_n=1, return_documents=False)
        assert best["results"] == [{"index": order[0], "relevance_score": answer["results"][0]["relevance_score"]}]

    server, recorded = embedder
    vectors = [unit(states[-1]) for states in recorded.hidden]
    answer = post(server, "/rerank", query=recorded.texts[0], documents=recorded.texts)
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert_close([found[i] for i in range(4)], np.array([vectors[0] @ other for other in vectors]))
    assert answer["usage"]["total_tokens"] == len(recorded.ids[0]) + sum(map(len, recorded.ids))


def test_classes_and_plain_numbers_over_http(
    crosser: tuple[Server, Recorded], embedder: tuple[Server, Recorded]
) -> None:
    server, recorded = crosser
    alone = [i for i, types in enumerate(recorded.types) if 1 not in types]
    for path in ("/classify", "/v1/classify"):
        answer = post(server, path, input=[recorded.texts[i] for i in alone])
        assert [(one["index"], one["label"], one["num_classes"]) for one in answer["data"]] == [
            (index, "LABEL_0", 1) for index in range(len(alone))
        ]
        for one, i in zip(answer["data"], alone, strict=True):
            assert_close(one["probs"], sigmoid(recorded.outputs[i]))
    server, recorded = embedder
    answer = post(server, "/pooling", input=recorded.texts, task="token_embed", use_activation=False)
    for one, states in zip(answer["data"], recorded.hidden, strict=True):
        assert_close(one["data"], states)
    answer = post(server, "/pooling", input=recorded.texts, task="token_embed", encoding_format="base64")
    for one, states in zip(answer["data"], recorded.hidden, strict=True):
        raw = np.frombuffer(base64.b64decode(one["data"]), "<f4").reshape(states.shape)
        assert_close(raw, states / np.linalg.norm(states, axis=-1, keepdims=True))
    answer = post(server, "/pooling", input=recorded.ids[0])
    assert (answer["data"][0]["object"], len(answer["data"])) == ("pooling", 1)
    assert_close(answer["data"][0]["data"], unit(recorded.hidden[0][-1]))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [1, "w"]}, "input"),
        ("/v1/embeddings", {"input": "w1", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "w1", "dimensions": 2**40}, None),
        ("/v1/embeddings", {"input": "w1", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "w1", "imput": "w1"}, "imput"),
        ("/v1/embeddings", {"input": "w1", "priority": 2**31}, "priority"),
        ("/v1/embeddings", {"input": "w1", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "\ud800"}, None),
        ("/score", {"text_1": "w1"}, "text_2"),
        ("/score", {"text_1": "w1", "queries": "w1", "text_2": "w2"}, "text_1"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": [1] * 2000}, "input"),
        ("/score", {"text_1": [], "text_2": []}, "text_1"),
        ("/score", {"text_1": ["w1", "w2"], "text_2": ["w1", "w2", "w3"]}, "text_1"),
        ("/score", {"queries": ["w1", "w2"], "text_2": ["w1", "w2", "w3"]}, "queries"),
        ("/score", {"text_1": "w1 " * 2000, "text_2": "w2"}, "text_1"),
        ("/rerank", {"query": "w1", "documents": []}, "documents"),
        ("/rerank", {"query": "w1", "documents": ["w1", "w2 " * 2000]}, "documents"),
        ("/rerank", {"query": "w1", "documents": [{"image": "w2"}]}, "documents"),
        ("/rerank", {"query": "w1", "documents": ["w1"], "top_n": -1}, "top_n"),
        ("/pooling", {"input": "w1", "task": "plugin"}, "task"),
        ("/pooling", {"input": "w1", "task": "classify"}, "task"),
        ("/classify", {"input": "w1", "use_activation": "yes"}, "use_activation"),
    ],
)
def test_faults_over_http(embedder: tuple[Server, Recorded], path: str, body: dict[str, Any], param: str) -> None:
    server, _ = embedder
    answer = httpx.post(
        server.url + path, content=json.dumps(body), headers={"content-type": "application/json"}, timeout=60
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
