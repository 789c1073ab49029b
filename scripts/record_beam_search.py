"""Records what Hugging Face transformers' beam search answers with, on one of the recorded tiny models.

    python scripts/record_beam_search.py [--model tests/models/reference/NAME] [--out tests/engine/beam_search.json]

Runs where torch and transformers are installed. Each case has its prompt, its settings, and the sequences found with
their scores. Cases where two sequences come close to each other are left out: rounding would decide them.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

MARGIN = 2e-3  # of scores


def record(model: Any, vocab: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    cases = []
    for width, penalty, early, num_stop_ids in itertools.product(
        (2, 3, 5), (0.0, 1.0, 2.0, -1.0), (False, True, "never"), (1, 2)
    ):
        prompt = rng.integers(0, vocab, int(rng.integers(1, 14))).tolist()
        # Ids that the model does draw, so that beams end at every length.
        drawn = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        stop_ids = list(dict.fromkeys((drawn[int(rng.integers(1, 6))], int(rng.integers(vocab)))))[:num_stop_ids]
        settings = {"length_penalty": penalty, "early_stopping": early, "max_new_tokens": int(rng.integers(3, 11))}
        found = model.generate(
            torch.tensor([prompt]), do_sample=False, num_beams=width, num_return_sequences=width, pad_token_id=vocab,
            eos_token_id=stop_ids, return_dict_in_generate=True, output_scores=True, **settings,
        )  # fmt: skip
        scores = found.sequences_scores.tolist()
        sequences = [[t for t in row if t != vocab] for row in found.sequences[:, len(prompt) :].tolist()]
        if min(scores) > -1e8 and min(-np.diff(scores)) > MARGIN:
            cases.append({
                "prompt": prompt, "width": width, "stop_ids": stop_ids, **settings,
                "sequences": sequences, "scores": [round(score, 6) for score in scores],
            })  # fmt: skip
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=Path("tests/models/reference/llama-tied-3-heads"))
    parser.add_argument("--out", type=Path, default=Path("tests/engine/beam_search.json"))
    arguments = parser.parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    cases = record(model, model.config.vocab_size)
    lines = ",\n".join(json.dumps(case) for case in cases)
    arguments.out.write_text(f'{{"model": "{arguments.model.name}", "cases": [\n{lines}\n]}}\n')
    print(f"{arguments.out}: {len(cases)} searches")


if __name__ == "__main__":
    main()
