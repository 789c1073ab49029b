"""Host time of structured output: filling a step's masks and going on by what is drawn, for random answers.

    python scripts/time_masks.py path/to/checkpoint --rows 32 --steps 200 --vocab-size 128256

The checkpoint's tokenizer alone is read. What the device would do meanwhile is not part of it.
"""

import argparse
import time

import numpy as np

from jaxllm import SamplingParams
from jaxllm.bench.workloads import SCHEMA
from jaxllm.constraints import Compiler
from jaxllm.core import Request, Row
from jaxllm.engine.constrained import Masks, advance
from jaxllm.server.text import Tokenizer
from jaxllm.structured_outputs import StructuredOutputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--vocab-size", type=int, help="tokens of the model; those of the tokenizer by default")
    parser.add_argument("--threads", type=int, default=Masks.THREADS)
    args = parser.parse_args()

    Masks.THREADS = args.threads
    tokenizer = Tokenizer.load(args.tokenizer)
    vocab_size = args.vocab_size or tokenizer.vocab_size
    end = (next(iter(tokenizer.special_token_ids)),)
    compiler = Compiler(lambda: tokenizer, vocab_size, end)
    form = StructuredOutputs(json=SCHEMA, disable_any_whitespace=True)
    params = SamplingParams(max_tokens=None)
    requests = [
        Request(str(i), [0], params, end, 1 << 30, seed=i, constraint=compiler.compile(form, end))
        for i in range(args.rows)
    ]
    rows = [Row(request, i, 0, 1, [], False, True, [], []) for i, request in enumerate(requests)]
    masks, rng = Masks(args.rows, vocab_size), np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"fill": [], "advance": []}
    work = time.process_time()  # of all threads: what wall time comes to where nothing else runs
    drawing = 0.0
    for _ in range(args.steps):
        started = time.perf_counter()
        filled, failed = masks.fill(rows)
        seconds["fill"].append(time.perf_counter() - started)
        assert filled is not None
        assert not failed, failed
        other = time.process_time()
        bits = np.unpackbits(filled.view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
        drawn = [int(rng.choice(np.flatnonzero(row))) for row in bits]
        drawing += time.process_time() - other
        started = time.perf_counter()
        for request, token in zip(requests, drawn, strict=True):
            step = advance(request, [token])
            assert step.error is None, step.error
            request.output += step.tokens
        seconds["advance"].append(time.perf_counter() - started)
    work = time.process_time() - work - drawing
    compiler.close()
    tokens = sum(len(request.output) for request in requests)
    print(f"{args.rows} rows of {vocab_size} tokens, {args.steps} steps, {tokens} tokens, {args.threads} threads")
    print(f"processor time of all threads: {work / args.steps * 1e3:.2f} ms a step")
    for name, values in seconds.items():
        p50, p90, p99 = np.percentile(values, (50, 90, 99)) * 1e3
        print(f"{name:8} ms a step: median {p50:.2f}, 90% {p90:.2f}, 99% {p99:.2f}, mean {np.mean(values) * 1e3:.2f}")


if __name__ == "__main__":
    main()
