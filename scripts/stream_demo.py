"""Asks a running server to continue a prompt over gRPC and prints the text as it comes.

python scripts/stream_demo.py HOST:PORT [PROMPT]
"""

import sys

import grpc

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc


def main(address: str, prompt: str = "Once upon a time") -> None:
    request = pb.GenerateRequest(text=prompt, sampling=pb.Sampling(max_tokens=96, temperature=0))
    print(f"\n{prompt}", end="", flush=True)
    with grpc.insecure_channel(address) as channel:
        last = pb.GenerateChunk()
        for chunk in pb_grpc.InferenceStub(channel).GenerateStream(request, timeout=120):
            print(chunk.text, end="", flush=True)
            last = chunk
    count, timings = last.counts.completion, last.timings
    first, total = timings.first_token_seconds, timings.total_seconds
    print(f"\n\n{count} tokens in {total:.2f} s, the first after {first * 1e3:.0f} ms: {count / total:.0f} tokens/s")
    if last.finish.reason not in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH):
        sys.exit(f"the request ended with {pb.FinishReason.Name(last.finish.reason)}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
