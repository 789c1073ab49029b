"""Multi-head latent attention."""

import torch

from reference_cases.case import SMALL, Case

LATENT = {"hidden_size": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8}
EXPERTS = LATENT | {"moe_intermediate_size": 12}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

CASES = (
    Case(
        "deepseek-v2-lite", "deepseek_v2",
        SMALL | EXPERTS | {
            "num_attention_heads": 4, "q_lora_rank": None, "v_head_dim": 8, "n_routed_experts": 6,
            "num_experts_per_tok": 3, "n_shared_experts": 2, "first_k_dense_replace": 1,
            "rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "deepseek-v2-groups", "deepseek_v2",
        SMALL | EXPERTS | {
            "num_attention_heads": 2, "q_lora_rank": 20, "v_head_dim": 12, "n_routed_experts": 8,
            "num_experts_per_tok": 3, "n_shared_experts": 1, "n_group": 4, "topk_group": 2,
            "topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0, "attention_bias": True,
            "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "deepseek-v3-groups-yarn", "deepseek_v3",
        SMALL | EXPERTS | {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 20, "v_head_dim": 12,
            "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
            "first_k_dense_replace": 1, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
        },
        dtype=torch.bfloat16,
        old_names=True,
        extra_tensors={"model.layers.2.eh_proj.weight": (4, 8)},
        written={"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    Case(
        "deepseek-v3-without-q-rank", "deepseek_v3",
        SMALL | EXPERTS | {
            "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "v_head_dim": 16,
            "n_routed_experts": 5, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
            "first_k_dense_replace": 0, "routed_scaling_factor": 1.5, "rope_interleave": False,
            "attention_bias": True, "n_shared_experts": 2,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "minicpm3-factors", "minicpm3",
        SMALL | LATENT | {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 20, "v_head_dim": 8, "scale_emb": 3,
            "dim_model_base": 16,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "minicpm3-untied-without-q-rank", "minicpm3",
        SMALL | LATENT | {
            "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "v_head_dim": 12,
            "tie_word_embeddings": False, "attention_bias": True, "scale_depth": 1.0,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
)  # fmt: skip
