"""GLM-4 and GLM-4-0414: half of each head turned, pair by neighbouring pair; sandwich norms."""

import torch

from reference_cases.case import SMALL, Case

CASES = tuple(
    case
    for family in ("glm", "glm4")
    for case in (
        Case(
            f"{family}-half-turned-biases", family,
            SMALL | {
                "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
                "pad_token_id": 0, "attention_bias": True,
            },
            dtype=torch.bfloat16,
            old_names=True,
        ),
        Case(
            f"{family}-tied-wide-heads", family,
            SMALL | {
                "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
                "pad_token_id": 0, "attention_bias": False, "tie_word_embeddings": True, "eos_token_id": [4, 6],
                "rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 0.75},
            },
        ),
    )
)  # fmt: skip
