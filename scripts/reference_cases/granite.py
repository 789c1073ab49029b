"""Granite: factors on embedding, scores, residuals and logits."""

import torch

from reference_cases.case import SMALL, Case

CASES = (
    Case(
        "granite-factors", "granite",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "embedding_multiplier": 12.0,
            "attention_multiplier": 0.25, "residual_multiplier": 0.22, "logits_scaling": 0.5,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "granite-tied-biases", "granite",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": True, "attention_multiplier": 0.3, "residual_multiplier": 0.7,
        },
    ),
)  # fmt: skip
