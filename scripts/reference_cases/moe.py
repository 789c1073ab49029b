"""Mixtures of experts."""

import torch

from reference_cases.case import SMALL, Case

QWEN = {"moe_intermediate_size": 20, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}

CASES = (
    Case(
        "mixtral-window-old-names", "mixtral",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2, "num_local_experts": 5,
            "sliding_window": 6, "intermediate_size": 24,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "mixtral-tied-wide-heads", "mixtral",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12,
            "num_local_experts": 4, "num_experts_per_tok": 3, "tie_word_embeddings": True, "intermediate_size": 28,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "qwen3-moe-normalised", "qwen3_moe",
        SMALL | QWEN | {"head_dim": 12, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True},
        dtype=torch.bfloat16,
        old_names=True,
        written={"num_experts": 8, "num_local_experts": None},
    ),
    Case(
        "qwen3-moe-dense-layers-windows-biases", "qwen3_moe",
        SMALL | QWEN | {
            "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 4,
            "mlp_only_layers": [1], "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 5,
            "attention_bias": True, "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "qwen2-moe-shared", "qwen2_moe",
        SMALL | QWEN | {"shared_expert_intermediate_size": 28, "num_experts": 6, "num_experts_per_tok": 2},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "qwen2-moe-normalised-windows", "qwen2_moe",
        SMALL | QWEN | {
            "shared_expert_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 4, "num_hidden_layers": 3,
            "norm_topk_prob": True, "mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 4,
            "max_window_layers": 2, "qkv_bias": False,
        },
        dtype=torch.bfloat16,
    ),
)  # fmt: skip
