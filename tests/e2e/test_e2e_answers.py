"""One server process and ordinary clients: answers, refusals, and what comes back when a client goes."""

import json
import urllib.request
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from processes import Server, until

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

MARGIN = 0.01
"""Where the reference itself is less sure than this of its token, another one is no error."""


def request(text: str = "Once upon a time", **fields) -> pb.GenerateRequest:
    sampling = {name: fields.pop(name) for name in list(fields) if name in pb.Sampling.DESCRIPTOR.fields_by_name}
    return pb.GenerateRequest(text=text, sampling={"temperature": 0, **sampling}, **fields)


@pytest.fixture(scope="module")
def cases(material: Path) -> list[dict]:
    return json.loads((material / "derived/goldens/dev/stories260K.json").read_text())["cases"]


def test_greedy_tokens_and_logprobs_are_the_references(server: Server, cases: list[dict]) -> None:
    compared = 0
    for case in cases:
        count = len(case["greedy_ids"])
        response = server.inference.Generate(
            request(case["prompt"], max_tokens=count, ignore_eos=True, logprobs=5, prompt_logprobs=0), timeout=60
        )
        assert response.prompt_token_ids == case["prompt_ids"]
        assert [entry.token_id for entry in response.prompt_logprobs] == case["prompt_ids"][1:]
        assert [entry.logprob for entry in response.prompt_logprobs] == pytest.approx(
            case["prompt_logprobs"][1:], abs=1e-3
        )
        assert len(response.token_ids) == len(response.logprobs) == count
        for token, entry, step in zip(response.token_ids, response.logprobs, case["steps"], strict=True):
            if token != step["id"]:
                assert step["margin"] < MARGIN, f"{case['prompt']!r}: {token} instead of {step['id']}"
                break  # another text from here on
            assert entry.token_id == token
            assert entry.rank == 1
            assert entry.logprob == pytest.approx(step["lp"], abs=1e-3)
            assert [top.logprob for top in entry.top] == pytest.approx([lp for _, lp in step["top5"]], abs=1e-3)
            compared += 1
        else:
            # The reference decoded the new tokens alone, where sentencepiece drops a leading space.
            assert response.text.removeprefix(" ") == case["text"].removeprefix(" ")
    assert compared > 100


def test_a_stream_adds_up_to_the_unary_answer(server: Server) -> None:
    whole = server.inference.Generate(request(max_tokens=40), timeout=60)
    chunks = list(server.inference.GenerateStream(request(max_tokens=40), timeout=60))
    assert len(chunks) > 5
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert chunks[-1].finish == whole.finish == pb.Finish(reason=pb.FINISH_REASON_LENGTH)
    assert chunks[-1].counts.completion == 40
    assert not any(chunk.HasField("finish") for chunk in chunks[:-1])
    timings = chunks[-1].timings
    assert 0 < timings.first_token_seconds < timings.total_seconds
    assert timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds == pytest.approx(
        timings.total_seconds
    )


def test_a_session_adds_up_to_the_unary_answers(server: Server) -> None:
    texts = ["Once upon a time", "Lily and Tom went to the park", "The dog", "One day"]
    messages = [
        pb.SessionRequest(generate=request(text, request_id=f"s{i}", max_tokens=20 + i)) for i, text in enumerate(texts)
    ]
    answers = dict.fromkeys((f"s{i}" for i in range(len(texts))), "")
    for message in server.inference.Session(iter(messages), timeout=60):
        for chunk in message.chunks:
            answers[chunk.request_id] += chunk.text
    for i, text in enumerate(texts):
        assert answers[f"s{i}"] == server.inference.Generate(request(text, max_tokens=20 + i), timeout=60).text


def test_a_stop_string_across_tokens(server: Server) -> None:
    response = server.inference.Generate(request(max_tokens=60, stop=["girl named"]), timeout=60)
    assert response.text == ", there was a little "
    assert response.finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop_string="girl named")
    assert response.counts.completion == len(response.token_ids)


def test_a_seed_repeats_and_seeds_differ(server: Server) -> None:
    def draw(seed: int) -> str:
        return server.inference.Generate(request(temperature=1.0, seed=seed, max_tokens=30), timeout=60).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_a_shared_prefix_comes_from_the_cache(server: Server) -> None:
    text = "Tim had a red ball and a blue car and a green boat. " * 6
    first = server.inference.Generate(request(text, max_tokens=8), timeout=60)
    again = server.inference.Generate(request(text, max_tokens=8), timeout=60)
    assert again.counts.cached > 64
    assert again.token_ids == first.token_ids
    salted = server.inference.Generate(request(text, max_tokens=8, cache_salt="other"), timeout=60)
    assert (salted.counts.cached, salted.token_ids) == (0, first.token_ids)
    assert server.control.FlushPrefixCache(pb.FlushPrefixCacheRequest(), timeout=10).pages > 0
    flushed = server.inference.Generate(request(text, max_tokens=8), timeout=60)
    assert (flushed.counts.cached, flushed.token_ids) == (0, first.token_ids)


def test_tokenize_and_detokenize(server: Server, cases: list[dict]) -> None:
    for case in cases:
        tokens = server.inference.Tokenize(pb.TokenizeRequest(text=case["prompt"]), timeout=10)
        assert tokens.token_ids == case["prompt_ids"]
        text = server.inference.Detokenize(
            pb.DetokenizeRequest(token_ids=tokens.token_ids, skip_special_tokens=True), timeout=10
        ).text
        assert text.strip() == case["prompt"].strip()


def test_what_the_server_says_of_itself(server: Server) -> None:
    info = server.control.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    assert (info.name, info.vocab_size, info.max_model_len, info.dtype) == ("stories", 512, 512, "float32")
    assert 250_000 < info.parameters < 300_000
    about = server.control.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
    assert (about.platform, about.device) == ("cpu", "cpu")
    assert about.uptime_seconds > 0
    assert about.config["max_num_seqs"] > 0, "what was left open is shown as it was decided"


BAD = {
    "empty prompt": (request(""), "the prompt is empty: send a text that says something"),
    "no tokens": (pb.GenerateRequest(token_ids=pb.TokenIds()), "prompt is empty"),
    "too long": (pb.GenerateRequest(token_ids={"ids": [5] * 512}), "prompt has 512 tokens, and the context holds 512"),
    "outside": (pb.GenerateRequest(token_ids={"ids": [5, 512]}), "512, which is no token: ids go from 0 to 511"),
    "outside stop": (request(stop_token_ids=[9999]), "stop_token_ids holds 9999, which is no token"),
    "nan": (request(top_p=float("nan")), "top_p=nan: must be a finite number"),
    "infinite": (request(temperature=float("inf")), "temperature=inf: must be a finite number"),
    "negative": (request(temperature=-1), "temperature=-1.0: must not be negative; 0 is greedy"),
    "top_p 0": (request(top_p=0), "top_p=0.0: must be in (0, 1]"),
    "max_tokens 0": (request(max_tokens=0), "max_tokens=0: must be at least 1"),
    "min above max": (request(max_tokens=1, min_tokens=2), "min_tokens=2: must not exceed max_tokens=1"),
    "min beyond all": (pb.GenerateRequest(text="x", sampling=pb.Sampling(min_tokens=2**32 - 1)), "must be below 2**31"),
    "penalty": (request(frequency_penalty=3), "frequency_penalty=3.0: must be in [-2, 2]"),
    "logprobs": (request(logprobs=21), "logprobs=21: this engine reports at most 20 per position"),
    "empty stop": (request(stop=[""]), "stop=('',): must hold non-empty strings"),
    "timeout": (request(timeout_seconds=0), "timeout_seconds=0.0: must be a positive number"),
    "chat": (pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="x")])), "no chat template"),
    "unknown field": (pb.GenerateRequest.FromString(b"\xe8\x04\x01"), "GenerateRequest has no field number 77"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_sentence(server: Server, case: str) -> None:
    wire, message = BAD[case]
    with pytest.raises(grpc.RpcError) as raised:
        server.inference.Generate(wire, timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in raised.value.details()


def test_an_unknown_model(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        server.inference.Generate(request(model="gpt-5"), timeout=10)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'gpt-5' is not served here; 'stories' is" in raised.value.details()


def test_cancellation_frees_pages_and_spares_the_others(server: Server) -> None:
    total = server.load().pages_total
    whole = server.inference.Generate(request("The dog", max_tokens=300, ignore_eos=True), timeout=60)
    calls = [server.inference.GenerateStream(request(max_tokens=500, ignore_eos=True)) for _ in range(6)]
    other = server.inference.Generate.future(request("The dog", max_tokens=300, ignore_eos=True), timeout=60)
    for call in calls:
        next(call)
    assert server.load().running == 7
    for call in calls:
        call.cancel()
    until(lambda: server.load().running <= 1, seconds=1)
    assert other.result().token_ids == whole.token_ids
    until(lambda: server.load().pages_free == total)


def test_the_calls_deadline_and_the_requests(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        server.inference.Generate(request(max_tokens=500, ignore_eos=True), timeout=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: server.load().running == 0)
    response = server.inference.Generate(request(max_tokens=500, ignore_eos=True, timeout_seconds=0.1), timeout=60)
    assert response.finish.reason == pb.FINISH_REASON_DEADLINE
    assert 0 < len(response.token_ids) < 500
    assert response.text
    assert response.timings.total_seconds == pytest.approx(0.1, abs=0.1)


def test_abort_by_an_operator(server: Server) -> None:
    call = server.inference.GenerateStream(request(request_id="long", max_tokens=500, ignore_eos=True))
    next(call)
    assert server.control.Abort(pb.AbortRequest(request_id="long"), timeout=10).aborted == 1
    assert list(call)[-1].finish.reason == pb.FINISH_REASON_ABORT
    assert server.control.Abort(pb.AbortRequest(request_id="long"), timeout=10).aborted == 0


def test_health_and_reflection(server: Server) -> None:
    for name in ("", "jaxllm.v1.Inference", "jaxllm.v1.Control"):
        response = server.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    watch = server.health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    database = ProtoReflectionDescriptorDatabase(server.channel)
    found = DescriptorPool(database).FindServiceByName("jaxllm.v1.Inference").methods_by_name["Generate"]
    assert found.input_type.fields_by_name["sampling"].number == 6


def test_the_front_answers_as_the_service_does(server: Server) -> None:
    body = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
    post = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(post, timeout=30) as response:
        answer = json.load(response)
    assert answer["choices"][0]["text"] == server.inference.Generate(request(max_tokens=20), timeout=30).text


def test_metrics_through_both_doors(server: Server) -> None:
    text = server.control.GetMetrics(pb.GetMetricsRequest(), timeout=10).text
    names = {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {"jaxllm_num_requests_running", "jaxllm_generation_tokens_total"} <= names
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        assert names <= {line.split("{")[0] for line in response.read().decode().splitlines()}
