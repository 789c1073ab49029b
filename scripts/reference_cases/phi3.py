"""Phi-3: fused projections, LongRoPE, heads turned in part."""

import torch

from reference_cases.case import SMALL, Case

CASES = (
    Case(
        "phi3-within-the-original-context", "phi3",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1000.0, "factor": 8.0, "short_factor": [1.0, 1.5, 2.0, 4.0],
                "long_factor": [3.0, 5.0, 9.0, 20.0], "original_max_position_embeddings": 64,
            },
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        # One position is the same by either set of factors, so that every sequence is by the long one.
        "phi3-beyond-partly-turned", "phi3",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "pad_token_id": 0,
            "tie_word_embeddings": True, "original_max_position_embeddings": 1,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "attention_factor": 1.2,
                "short_factor": [7.0, 7.0, 7.0], "long_factor": [1.0, 1.3, 2.0],
                "original_max_position_embeddings": 1,
            },
        },
    ),
    Case(
        "phi3-window", "phi3",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
            "sliding_window": 6,
        },
        dtype=torch.float16,
        old_names=True,
    ),
)  # fmt: skip
