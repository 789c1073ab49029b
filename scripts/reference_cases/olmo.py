"""OLMo, OLMo 2, OLMo 3: bare norms, norms of what a block adds, windows."""

import torch

from reference_cases.case import SMALL, Case

CASES = (
    Case(
        "olmo-clipped", "olmo",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "clip_qkv": 1.5, "eos_token_id": 3,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "olmo-tied-groups-biases", "olmo",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True,
            "attention_bias": True, "eos_token_id": 3, "rope_parameters": {"rope_theta": 500.0},
        },
    ),
    Case(
        "olmo2-groups", "olmo2",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 3},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "olmo2-tied-biases", "olmo2",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": True,
            "attention_bias": True, "eos_token_id": 3,
        },
    ),
    Case(
        "olmo3-yarn-on-full-layers", "olmo3",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
            "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "eos_token_id": 3,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 5000.0,
                    "attention_factor": 1.1,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
        dtype=torch.bfloat16,
        written={
            "rope_parameters": None, "rope_theta": 5000.0,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.1,
            },
        },
    ),
    Case(
        "olmo3-tied", "olmo3",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True,
            "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "eos_token_id": 3,
        },
    ),
)  # fmt: skip
