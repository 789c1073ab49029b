"""Cohere and Cohere 2: parallel blocks, LayerNorm without bias, neighbouring pairs turned, logits scaled."""

import torch

from reference_cases.case import SMALL, Case

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

CASES = (
    Case(
        "cohere-groups", "cohere",
        SMALL | SPECIAL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "logit_scale": 0.5},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "cohere-head-norms-untied", "cohere",
        SMALL | SPECIAL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "use_qk_norm": True,
            "attention_bias": True, "tie_word_embeddings": False, "logit_scale": 1.5,
            "rope_parameters": {"rope_theta": 400.0},
        },
    ),
    Case(
        "cohere2-windows", "cohere2",
        SMALL | SPECIAL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
            "sliding_window": 5, "logit_scale": 0.5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        dtype=torch.bfloat16,
        old_names=True,
        written={"layer_types": None, "sliding_window_pattern": 2},
    ),
    Case(
        "cohere2-biases", "cohere2",
        SMALL | SPECIAL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "sliding_window": 8,
            "attention_bias": True, "logit_scale": 1.0, "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
)  # fmt: skip
