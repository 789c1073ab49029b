"""Gemma, Gemma 2, Gemma 3: unit-offset norms, caps, windows, two rotations."""

import torch

from reference_cases.case import SMALL, Case

CASES = (
    Case(
        "gemma-wide-heads", "gemma",
        SMALL | {"hidden_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "gemma-untied-biases", "gemma",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12,
            "attention_bias": True, "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 300.0},
        },
    ),
    Case(
        "gemma2-caps-and-windows", "gemma2",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "num_hidden_layers": 3, "sliding_window": 5, "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0,
        },
        dtype=torch.bfloat16,
        old_names=True,
        written={"layer_types": None},
    ),
    Case(
        "gemma2-without-caps", "gemma2",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8,
            "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "query_pre_attn_scalar": 6,
            "attn_logit_softcapping": None, "final_logit_softcapping": None,
        },
    ),
    Case(
        "vaultgemma-caps-and-windows", "vaultgemma",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "sliding_window": 5, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 8.0,
        },
        dtype=torch.bfloat16,
        old_names=True,
        written={"layer_types": None},
    ),
    Case(
        "vaultgemma-full", "vaultgemma",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12,
            "layer_types": ["full_attention"] * 2, "query_pre_attn_scalar": 12, "attn_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
        dtype=torch.float16,
    ),
    Case(
        "gemma3-two-rotations", "gemma3_text",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "num_hidden_layers": 3, "sliding_window": 6, "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
            },
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "gemma3-old-names", "gemma3_text",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 12,
            "sliding_window": 4, "sliding_window_pattern": 2, "query_pre_attn_scalar": 12,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 40000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        written={
            "layer_types": None, "rope_parameters": None, "rope_theta": 40000.0, "rope_local_base_freq": 100.0,
            "sliding_window_pattern": 2,
        },
    ),
)  # fmt: skip
