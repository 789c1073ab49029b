"""Llama and its nearest kin: Mistral, Qwen2, Qwen3."""

import torch

from reference_cases.case import SMALL, Case

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

CASES = (
    Case(
        "llama-tied-3-heads", "llama",
        SMALL | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
        old_names=True,
        extra_tensors={"model.layers.0.self_attn.rotary_emb.inv_freq": (6,)},
    ),
    Case(
        "llama-llama3-rope-biases", "llama",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True,
            "mlp_bias": True, "rope_parameters": {"rope_theta": 500.0, **LLAMA3_ROPE}, "eos_token_id": [3, 5],
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "llama-linear-rope-5-heads", "llama",
        SMALL | {
            "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5, "num_hidden_layers": 3,
            "rope_parameters": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 2.5},
        },
        dtype=torch.float16,
    ),
    Case(
        "mistral-window", "mistral",
        SMALL | {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": 5},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "mistral-full-wide-heads", "mistral",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "sliding_window": None, "tie_word_embeddings": True, "hidden_act": "gelu",
        },
    ),
    Case(
        "qwen2-window-on-upper-layers", "qwen2",
        SMALL | {
            "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "num_hidden_layers": 3,
            "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "qwen2-tied-yarn", "qwen2",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16
            },
        },
        old_names=True,
    ),
    Case(
        "qwen3-tied-wide-heads", "qwen3",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
            "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "qwen3-biases-mixed-windows", "qwen3",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "num_hidden_layers": 3, "attention_bias": True, "use_sliding_window": True, "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        dtype=torch.float16,
    ),
)  # fmt: skip
