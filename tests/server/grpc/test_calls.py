"""Chunks that are written are filled again, and tell nothing of what they were."""

from jaxllm.server.grpc import calls
from jaxllm.server.grpc.calls import Call
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb


def fill(call: Call, request_id: str, text: str) -> pb.GenerateChunk:
    chunk = call.chunk(request_id, 1)
    chunk.text += text
    chunk.token_ids.append(len(text))
    chunk.counts.completion = 1
    return chunk


def test_a_chunk_filled_again_is_as_a_new_one() -> None:
    call = Call()
    first = fill(call, "a", "one")
    first.finish.reason = pb.FINISH_REASON_STOP
    first.prompt_token_ids.extend([1, 2])
    first.index = 3
    call.written(call.take_now())
    again = call.chunk("b", 1)
    assert again is first
    assert again == pb.GenerateChunk(request_id="b")


def test_what_waits_is_never_filled_again() -> None:
    call = Call()
    fill(call, "a", "one")
    taken = call.take_now()
    fill(call, "a", "two")
    call.written(taken)
    fill(call, "b", "three")
    assert [(chunk.request_id, chunk.text) for chunk in call.take_now()] == [("a", "two"), ("b", "three")]


def test_memory_of_chunks_is_bounded() -> None:
    call = Call()
    seen: list[pb.GenerateChunk] = []  # kept, so that no id is another's
    for _ in range(4 * calls.FILLS):
        for request in "abc":
            chunk = fill(call, request, "text")
            if not any(chunk is known for known in seen):
                seen.append(chunk)
        call.written(call.take_now())
    assert 3 * 3 <= len(seen) <= 3 * 5
    fill(call, "a", "x" * calls.SMALL)
    large = call.take_now()
    call.written(large)
    assert all(fill(call, request, "text") is not large[0] for request in "abcdef")
