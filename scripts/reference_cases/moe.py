"""Mixtures of experts."""

from typing import Any

import torch

from reference_cases.case import SMALL, Case


def _gate_half(model: torch.nn.Module) -> None:
    """Sets the gates of Qwen2-MoE's shared experts to a half, for whatever the input is."""
    for name, parameter in model.named_parameters():
        if name.endswith("shared_expert_gate.weight"):
            parameter.data.zero_()


def _as_deepseek(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen2-MoE with gates of a half under DeepSeek's names, the half in the shared experts' last projections."""
    renamed = {}
    for name, tensor in tensors.items():
        if "shared_expert_gate" not in name:
            half = 0.5 if "shared_expert.down_proj" in name else 1.0
            renamed[name.replace(".shared_expert.", ".shared_experts.")] = tensor * half
    return renamed


def _deepseek(dense: int, every: int, shared: int, **fields: Any) -> dict[str, Any]:
    """How DeepSeek's config.json says what Qwen2-MoE's does in its own way."""
    gone = (
        "decoder_sparse_step", "layer_types", "max_window_layers", "mlp_only_layers", "num_experts", "qkv_bias",
        "shared_expert_intermediate_size", "sliding_window", "use_sliding_window",
    )  # fmt: skip
    return dict.fromkeys(gone) | fields | {
        "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "first_k_dense_replace": dense,
        "moe_layer_freq": every, "n_shared_experts": shared, "scoring_func": "softmax",
    }  # fmt: skip


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
    Case(
        "olmoe-clipped-groups", "olmoe",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 8,
            "num_experts_per_tok": 4, "clip_qkv": 1.0, "intermediate_size": 16, "pad_token_id": None,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "olmoe-normalised-tied", "olmoe",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_experts": 4, "num_experts_per_tok": 2,
            "norm_topk_prob": True, "tie_word_embeddings": True, "intermediate_size": 24, "attention_bias": True,
            "pad_token_id": None,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "deepseek-shared-experts", "qwen2_moe",
        SMALL | QWEN | {
            "shared_expert_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 3, "qkv_bias": False,
            "mlp_only_layers": [0],
        },
        dtype=torch.bfloat16,
        old_names=True,
        adapt=_gate_half,
        convert=_as_deepseek,
        written=_deepseek(1, 1, 2, n_routed_experts=6),
    ),
    Case(
        "deepseek-sparse-every-second-layer", "qwen2_moe",
        SMALL | QWEN | {
            "shared_expert_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2, "qkv_bias": False,
            "mlp_only_layers": [1], "num_hidden_layers": 3, "norm_topk_prob": True, "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
        adapt=_gate_half,
        convert=_as_deepseek,
        written=_deepseek(0, 2, 1, n_routed_experts=4),
    ),
    Case(
        "granitemoe-factors", "granitemoe",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6,
            "intermediate_size": 20, "embedding_multiplier": 3.0, "attention_multiplier": 0.25,
            "residual_multiplier": 0.5, "logits_scaling": 2.0,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "granitemoe-tied-biases", "granitemoe",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "num_local_experts": 4,
            "num_experts_per_tok": 3, "intermediate_size": 20, "attention_bias": True, "tie_word_embeddings": True,
            "attention_multiplier": 0.3,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "granitemoeshared", "granitemoeshared",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_local_experts": 4,
            "intermediate_size": 20, "shared_intermediate_size": 28, "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "phimoe-window-biases", "phimoe",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 6,
            "intermediate_size": 24, "attention_bias": True, "lm_head_bias": True, "sliding_window": 7,
            "router_jitter_noise": 0.3,
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "phimoe-longrope", "phimoe",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "num_local_experts": 4,
            "intermediate_size": 24,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
                "long_factor": [4.0] * 6, "short_mscale": 1.25, "long_mscale": 1.25, "factor": 1.0,
                "original_max_position_embeddings": 64,
            },
        },
        dtype=torch.bfloat16,
        written={"architectures": ["PhiMoEForCausalLM"]},
    ),
    Case(
        "dbrx-clipped-groups", "dbrx",
        {
            "vocab_size": 97, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 500.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 6, "moe_top_k": 3},
        },
        dtype=torch.bfloat16,
        written={"rope_parameters": None},  # as published, where attn_config has it
    ),
    Case(
        "dbrx-other-norm", "dbrx",
        {
            "vocab_size": 97, "d_model": 36, "n_heads": 3, "n_layers": 2, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 1, "rope_theta": 500.0, "clip_qkv": 50.0},
            "ffn_config": {
                "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": 2.0,
                "ffn_act_fn": {"name": "gelu"},
            },
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "glm4-moe-groups-qk-norm", "glm4_moe",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "moe_intermediate_size": 20, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
            "topk_group": 2, "routed_scaling_factor": 2.5, "use_qk_norm": True, "attention_bias": True,
            "first_k_dense_replace": 1,
        },
        dtype=torch.bfloat16,
        old_names=True,
        extra_tensors={"model.layers.2.eh_proj.weight": (4, 8)},
    ),
    Case(
        "glm4-moe-not-normalised", "glm4_moe",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "moe_intermediate_size": 20,
            "n_routed_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False, "n_shared_experts": 2,
            "first_k_dense_replace": 0, "partial_rotary_factor": 0.25, "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "gpt-oss-yarn-window", "gpt_oss",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12,
            "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 20, "sliding_window": 6,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "truncate": False, "original_max_position_embeddings": 16,
            },
        },
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "gpt-oss-without-biases", "gpt_oss",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16,
            "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20, "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention"], "attention_bias": False,
            "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        dtype=torch.bfloat16,
    ),
)  # fmt: skip
