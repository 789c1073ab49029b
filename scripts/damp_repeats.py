"""A research script: a logits processor of one's own, with state on the device, beside whatever else is asked for.

The change: a token that was drawn is less likely for a while, by a strength that decays with every further token, so
that a text may come back to a word but does not dwell on it.

    python scripts/damp_repeats.py "Once upon a time"
    python scripts/damp_repeats.py --strength 3 --decay 0.8 "Once upon a time"
    jaxllm serve --logits-processor scripts.damp_repeats:Damp    # from this repository's root

and then over HTTP, for those requests that ask for it: {"logits_processors": {"damp": {"strength": 2}}}.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import LLM, LogitsProcessor, SamplingParams
from jaxllm.sampling.processors import Arrays


class Damp(LogitsProcessor):
    """{"strength": number, "decay": in [0, 1), 0.5 by default}. State: `heat` [V], what tokens have lost so far."""

    name = "damp"

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {"strength": np.float32(0), "decay": np.float32(0)}
        self.state = {"heat": np.zeros(vocab_size, np.float32)}

    def parse(self, argument: Any) -> Arrays:
        decay = argument.get("decay", 0.5)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be in [0, 1)")
        return {"strength": argument["strength"], "decay": decay}

    def apply(self, logits: jax.Array, params: Arrays, state: Arrays, num_drawn: jax.Array) -> jax.Array:
        return logits - params["strength"][:, None] * state["heat"]

    def update(self, params: Arrays, state: Arrays, tokens: jax.Array, drawn: jax.Array) -> Arrays:
        heat = state["heat"] * params["decay"][:, None]
        return {"heat": heat.at[jnp.arange(len(tokens), dtype=jnp.int32), tokens].add(jnp.float32(1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--strength", type=float, default=2.0)
    parser.add_argument("--decay", type=float, default=0.5)
    arguments = parser.parse_args()
    damp = {"damp": {"strength": arguments.strength, "decay": arguments.decay}}
    with LLM(arguments.model, logits_processors=[Damp], max_num_seqs=2) as llm:
        plain = SamplingParams(temperature=0, max_tokens=60)
        damped = SamplingParams(temperature=0, max_tokens=60, logits_processors=damp)
        for name, output in zip(
            ("plain", "damped"), llm.generate([arguments.prompt] * 2, [plain, damped]), strict=True
        ):
            print(f"{name}: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main()
