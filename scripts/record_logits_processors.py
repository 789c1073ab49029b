"""Records what Hugging Face transformers' logits processors make of random logits, for the sampling tests.

    python scripts/record_logits_processors.py [--out tests/sampling/reference/transformers.npz]

Runs where torch and transformers are installed. Each row of the file is one draw: its prompt and its output so far,
the parameters, the logits, and what transformers' processors and warpers, one by one, turn them into.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import generation

ROWS, VOCAB, PROMPT, OUTPUT = 48, 50, 12, 10


def record(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Half of the vocabulary, so that tokens repeat; -1 pads outputs that are shorter.
    prompt = rng.integers(0, VOCAB // 2, (ROWS, PROMPT)).astype(np.int32)
    num_output = rng.integers(0, OUTPUT + 1, ROWS).astype(np.int32)
    output = rng.integers(0, VOCAB // 2, (ROWS, OUTPUT)).astype(np.int32)
    output[np.arange(OUTPUT) >= num_output[:, None]] = -1
    logits = rng.normal(0, 4, (ROWS, VOCAB)).astype(np.float32)
    repetition = rng.choice([1.0, 0.6, 1.3, 2.0], ROWS).astype(np.float32)
    least = rng.integers(0, 8, ROWS).astype(np.int32)
    stop_ids = rng.integers(0, VOCAB, (ROWS, 2)).astype(np.int32)
    bias_ids = np.stack([rng.permutation(VOCAB)[:4] for _ in range(ROWS)]).astype(np.int32)
    bias = rng.uniform(-20, 20, (ROWS, 4)).astype(np.float32)
    temperature = rng.uniform(0.3, 2, ROWS).astype(np.float32)
    top_k = rng.integers(1, VOCAB, ROWS).astype(np.int32)
    top_p = rng.uniform(0.2, 0.99, ROWS).astype(np.float32)
    min_p = rng.uniform(0.001, 0.3, ROWS).astype(np.float32)

    # One bad word goes on where the row stands, one does not (most likely), one is a single token.
    words = np.full((ROWS, 3, 4), -1, np.int32)
    results: dict[str, list[np.ndarray]] = {
        name: [] for name in ("repeated", "biased", "held", "censored", "tempered", "top_k", "top_p", "min_p")
    }
    for i in range(ROWS):
        known = [*prompt[i].tolist(), *output[i, : num_output[i]].tolist()]
        length = int(rng.integers(1, 4))
        words[i, 0, 3 - length :] = [*known[-length:], int(rng.integers(VOCAB))]
        words[i, 1, 1:] = rng.integers(0, VOCAB, 3)
        words[i, 2, 3] = rng.integers(VOCAB)
        ids = torch.tensor([known])
        row = torch.tensor(logits[i : i + 1])
        processors = {
            "repeated": generation.RepetitionPenaltyLogitsProcessor(float(repetition[i])),
            "biased": generation.SequenceBiasLogitsProcessor(
                [[[int(token)], float(value)] for token, value in zip(bias_ids[i], bias[i], strict=True)]
            ),
            "held": generation.MinNewTokensLengthLogitsProcessor(
                PROMPT, int(least[i]), [int(token) for token in stop_ids[i]]
            ),
            "censored": generation.NoBadWordsLogitsProcessor(
                [[int(token) for token in word if token >= 0] for word in words[i]]
            ),
            "tempered": generation.TemperatureLogitsWarper(float(temperature[i])),
            "top_k": generation.TopKLogitsWarper(int(top_k[i])),
            "top_p": generation.TopPLogitsWarper(float(top_p[i])),
            "min_p": generation.MinPLogitsWarper(float(min_p[i])),
        }
        for name, processor in processors.items():
            results[name].append(processor(ids, row.clone())[0].numpy().astype(np.float32))
    return {
        "prompt": prompt, "output": output, "num_output": num_output, "logits": logits, "repetition": repetition,
        "least": least, "stop_ids": stop_ids, "bias_ids": bias_ids, "bias": bias, "temperature": temperature,
        "num_top": top_k, "nucleus": top_p, "least_p": min_p, "words": words,
        **{name: np.stack(rows) for name, rows in results.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("tests/sampling/reference/transformers.npz"))
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **record(seed=7))
    print(f"{out}: {ROWS} draws")


if __name__ == "__main__":
    main()
