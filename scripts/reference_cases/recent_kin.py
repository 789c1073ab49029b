"""Families of 2025 and 2026 that differ from a neighbour in a detail: Apertus, nanochat, Youtu-LLM, GLM-4.7-Flash, Hy3,
Trinity, Mellum 2, Granite with windows and sinks, IQuest-Coder."""

import torch

from reference_cases.case import SMALL, Case
from reference_cases.latent import EXPERTS, LATENT, YARN
from reference_cases.recent import FOUR, THREE

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
TWO_ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

CASES = (
    Case("apertus-llama3-rope", "apertus", FOUR, dtype=torch.bfloat16, old_names=True),
    Case(
        "apertus-tied-biases", "apertus",
        THREE | {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 16, "rope_parameters": PLAIN},
    ),
    Case("nanochat-groups", "nanochat", FOUR | {"pad_token_id": 1}, dtype=torch.bfloat16, old_names=True),
    Case(
        "nanochat-biases-without-cap", "nanochat",
        THREE | {"attention_bias": True, "final_logit_softcapping": None, "hidden_act": "gelu", "head_dim": 16},
    ),
    Case(
        "youtu-tied", "youtu",
        SMALL | LATENT | {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 20, "v_head_dim": 12},
        dtype=torch.bfloat16,
    ),
    Case(
        "youtu-yarn-without-q-rank", "youtu",
        SMALL | LATENT | {
            "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "v_head_dim": 8,
            "tie_word_embeddings": False, "rope_interleave": False, "attention_bias": True,
            "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        },
        old_names=True,
    ),
    Case(
        "glm4-moe-lite-groups", "glm4_moe_lite",
        SMALL | EXPERTS | {
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 20, "v_head_dim": 16,
            "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
        },
        dtype=torch.bfloat16,
        old_names=True,
        extra_tensors={"model.layers.2.eh_proj.weight": (4, 8)},
        written={"mlp_layer_types": None, "first_k_dense_replace": 1, "topk_method": "noaux_tc"},
    ),
    Case(
        "glm4-moe-lite-sparse-first", "glm4_moe_lite",
        SMALL | EXPERTS | {
            "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "v_head_dim": 12,
            "n_routed_experts": 5, "num_experts_per_tok": 2, "n_shared_experts": 2, "norm_topk_prob": False,
            "mlp_layer_types": ["sparse", "dense"], "rope_interleave": False, "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "hy-v3-shared", "hy_v3",
        FOUR | {"head_dim": 12, "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "hy-v3-sparse-first-biases-tied", "hy_v3",
        THREE | {
            "head_dim": 16, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "num_shared_experts": 2, "mlp_layer_types": ["sparse", "dense"], "attention_bias": True,
            "tie_word_embeddings": True, "router_scaling_factor": 1.5,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "afmoe-windows-scaled", "afmoe",
        FOUR | {
            "head_dim": 12, "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3,
            "num_hidden_layers": 4, "sliding_window": 5, "mup_enabled": True, "route_scale": 2.5,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "afmoe-sparse-biases-tied", "afmoe",
        THREE | {
            "head_dim": 16, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "num_shared_experts": 1, "num_dense_layers": 0, "attention_bias": True, "tie_word_embeddings": True,
            "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 7,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "mellum-two-rotations", "mellum",
        FOUR | {
            "head_dim": 12, "moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 3,
            "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": TWO_ROPES,
        },
        dtype=torch.bfloat16,
        extra_tensors={"mtp.fc.weight": (4, 8)},
    ),
    Case(
        "mellum-dense-first-biases-tied", "mellum",
        THREE | {
            "head_dim": 16, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
            "mlp_layer_types": ["dense", "sparse"], "attention_bias": True, "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "granite-swa-factors", "granite_swa",
        FOUR | {
            "num_hidden_layers": 5, "sliding_window": 5, "embedding_multiplier": 3.0, "attention_multiplier": 0.25,
            "residual_multiplier": 0.5, "logits_scaling": 2.0, "layer_rope_theta": [0, 100, 100, 10000, 0],
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "granite-swa-untied-biases", "granite_swa",
        THREE | {
            "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": False, "attention_multiplier": 0.3, "rope_parameters": PLAIN,
        },
        written={"layer_rope_theta": None},
    ),
    Case(
        "granitemoe-swa-shared", "granitemoe_swa",
        FOUR | {
            "num_local_experts": 6, "intermediate_size": 20, "shared_intermediate_size": 28, "sliding_window": 5,
            "attention_multiplier": 0.25, "residual_multiplier": 0.5, "logits_scaling": 2.0,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "granitemoe-swa-untied", "granitemoe_swa",
        THREE | {
            "num_local_experts": 4, "num_experts_per_tok": 3, "intermediate_size": 20, "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"], "layer_rope_theta": [50, 0],
            "attention_multiplier": 0.3, "tie_word_embeddings": False,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "iquestcoder", "iquestcoder", FOUR | {"head_dim": 12, "rope_parameters": PLAIN | {"rope_theta": 500.0}},
        dtype=torch.bfloat16,
        written={"architectures": ["IQuestCoderForCausalLM"], "clip_qkv": None, "use_sliding_window": False},
    ),
    Case(
        "iquestcoder-tied-biases", "iquestcoder",
        THREE | {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        written={"architectures": ["IQuestCoderForCausalLM"]},
    ),
)  # fmt: skip
