"""Whether a model draws the same tokens through kernels as through their references, greedily, after prose."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from jaxllm import LLM

LEADS = {"float32": 1e-3, "bfloat16": 0.1}
"""By type, in nats: a token that leads the next likeliest by less is tied with it, and another order of summation may
take the other."""
NUM_PROMPTS = 16


@dataclass(frozen=True, slots=True)
class Drawn:
    """What followed a prompt, and by how many nats each token led the next likeliest."""

    token_ids: list[int]
    leads: list[float]


def draw(llm: "LLM", num_prompt: int, num_output: int) -> list[Drawn]:
    """num_output tokens after each of NUM_PROMPTS prompts of 1 to num_prompt tokens, all at once."""
    ids = llm.tokenizer.encode(_prose())
    lengths = [1 + number * (num_prompt - 1) // (NUM_PROMPTS - 1) for number in range(NUM_PROMPTS)]
    prompts = [ids[number : number + length] for number, length in enumerate(lengths)]
    params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True, detokenize=False, logprobs=2)
    drawn = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        (answer,) = output.outputs
        assert answer.logprobs is not None
        leads = []
        for entries in answer.logprobs:
            likeliest, second = sorted((entry.logprob for entry in entries.values()), reverse=True)[:2]
            leads.append(likeliest - second)
        drawn.append(Drawn(list(answer.token_ids), leads))
    return drawn


def compare(references: Sequence[Drawn], kernels: Sequence[Drawn], dtype: str) -> dict[str, Any]:
    """Figures of two draws of the same prompts; they agree where every pair is the same up to a tie of the reference's.

    requests, output_tokens; same: requests with the same tokens throughout; ties: those that part at a tie; parted:
    where the others part, as (request, token, the reference's lead).
    """
    same, parted = 0, []
    for number, (ours, theirs) in enumerate(zip(references, kernels, strict=True)):
        pairs = zip(ours.token_ids, theirs.token_ids, strict=True)
        place = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if place is None:
            same += 1
        elif ours.leads[place] >= LEADS[dtype]:
            parted.append((number, place, ours.leads[place]))
    return {
        "requests": len(references),
        "output_tokens": sum(len(row.token_ids) for row in references),
        "same": same,
        "ties": len(references) - same - len(parted),
        "parted": parted,
        "agree": not parted,
    }


def _prose() -> str:
    """What the demo model's own page says, over and over."""
    page = Path(__file__).parents[1] / "demo_model" / "README.md"
    return page.read_text(encoding="utf-8") * 4
