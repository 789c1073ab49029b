"""Mixtures of 2025 and their dense siblings: dots.llm1, Solar Open, K-EXAONE, ERNIE 4.5, Hunyuan, FlexOlmo, MiniMax-M2;
Jais 2."""

import torch

from reference_cases.case import SMALL, Case

FOUR = SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
THREE = SMALL | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1}

CASES = (
    Case(
        "dots1-groups-windows", "dots1",
        FOUR | {
            "head_dim": 12, "moe_intermediate_size": 20, "n_routed_experts": 8, "n_shared_experts": 2,
            "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "num_hidden_layers": 3,
            "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "sliding_window": 5, "max_window_layers": 2,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "dots1-tied-biases", "dots1",
        THREE | {
            "moe_intermediate_size": 20, "n_routed_experts": 5, "n_shared_experts": 1, "num_experts_per_tok": 2,
            "attention_bias": True, "tie_word_embeddings": True, "sliding_window": None,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "solar-open-yarn", "solar_open",
        FOUR | {
            "head_dim": 12, "moe_intermediate_size": 20, "n_routed_experts": 6, "num_experts_per_tok": 3,
            "routed_scaling_factor": 1.5,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16
            },
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "solar-open-biases", "solar_open",
        THREE | {
            "head_dim": 16, "moe_intermediate_size": 20, "n_routed_experts": 8, "num_experts_per_tok": 2,
            "n_group": 2, "topk_group": 1, "attention_bias": True, "norm_topk_prob": False,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "exaone-moe-windows", "exaone_moe",
        FOUR | {
            "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3, "num_shared_experts": 2,
            "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"],
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "exaone-moe-sparse-first", "exaone_moe",
        THREE | {
            "head_dim": 16, "moe_intermediate_size": 20, "num_experts": 8, "num_experts_per_tok": 2, "n_group": 4,
            "topk_group": 2, "sliding_window": 6, "sliding_window_pattern": 2, "mlp_layer_types": ["sparse", "dense"],
            "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
        written={"architectures": ["ExaoneMoEForCausalLM"]},
    ),
    Case(
        "ernie-moe-shared", "ernie4_5_moe",
        FOUR | {"moe_intermediate_size": 20, "moe_num_experts": 6, "moe_k": 3, "head_dim": 12},
        dtype=torch.bfloat16,
    ),
    Case(
        "ernie-moe-untied-every-second-layer", "ernie4_5_moe",
        THREE | {
            "moe_intermediate_size": 20, "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 0,
            "num_hidden_layers": 3, "moe_layer_interval": 2, "moe_layer_end_index": 1, "tie_word_embeddings": False,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "hunyuan-alpha", "hunyuan_v1_dense",
        FOUR | {
            "head_dim": 12, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0},
        },
        dtype=torch.bfloat16,
        written={"use_qk_norm": True, "use_cla": False, "cla_share_factor": 2, "attention_head_dim": 12},
    ),
    Case(
        "hunyuan-biases", "hunyuan_v1_dense",
        THREE | {"attention_bias": True, "head_dim": 12},
        old_names=True,
    ),
    Case(
        "hunyuan-moe", "hunyuan_v1_moe",
        FOUR | {"num_experts": 6, "moe_topk": 3, "intermediate_size": 20, "head_dim": 8},
        dtype=torch.bfloat16,
        old_names=True,
        written={"moe_topk": [3, 3], "moe_intermediate_size": [20, 20], "num_shared_expert": [1, 1]},
    ),
    Case(
        "hunyuan-moe-tied", "hunyuan_v1_moe",
        THREE | {
            "num_experts": 4, "moe_topk": 1, "intermediate_size": 24, "head_dim": 16, "tie_word_embeddings": True,
            "attention_bias": True,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "flex-olmo-groups", "flex_olmo",
        FOUR | {"num_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 20, "pad_token_id": None},
        dtype=torch.bfloat16,
    ),
    Case(
        "flex-olmo-normalised-biases", "flex_olmo",
        THREE | {
            "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20, "norm_topk_prob": True,
            "attention_bias": True, "tie_word_embeddings": True, "pad_token_id": None,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "minimax-m2-half-turned", "minimax_m2",
        FOUR | {
            "head_dim": 12, "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 20,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
        dtype=torch.bfloat16,
        written={
            "rope_parameters": None, "rope_theta": 500, "rotary_dim": 6, "use_qk_norm": True, "scoring_func": "sigmoid",
            "qk_norm_type": "per_layer", "use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1,
            "shared_intermediate_size": 0, "use_routing_bias": True,
        },
    ),
    Case(
        "minimax-m2-tied", "minimax_m2",
        THREE | {
            "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24,
            "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
    ),
    Case("jais2-groups", "jais2", FOUR, dtype=torch.bfloat16),
    Case(
        "jais2-without-biases", "jais2",
        THREE | {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "hidden_act": "gelu"},
        dtype=torch.float16,
        old_names=True,
    ),
)  # fmt: skip
