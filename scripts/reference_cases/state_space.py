"""State-space models, and hybrids of them with attention."""

import torch

from reference_cases.case import Case

PURE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "initializer_range": 0.02}
HYBRID = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 40, "max_position_embeddings": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
GRANITE = {
    "mamba_n_heads": 8, "mamba_d_state": 12, "mamba_n_groups": 2, "shared_intermediate_size": 28,
    "attention_multiplier": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 2.0, "logits_scaling": 1.5,
}  # fmt: skip
NEMOTRON_LETTERS = {"linear_attention": "M", "moe": "E", "full_attention": "*", "mlp": "-"}


def _nemotron(*layers: str) -> dict[str, object]:
    """Fields that say which layers there are, as published."""
    pattern = "".join(NEMOTRON_LETTERS[layer] for layer in layers)
    return {"hybrid_override_pattern": pattern, "num_hidden_layers": len(layers), "layers_block_type": None}


def _backbone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mamba's first checkpoints call the embedding so."""
    return {name.replace("backbone.embeddings.", "backbone.embedding."): t for name, t in tensors.items()}


def remember(model: torch.nn.Module) -> None:
    """Lets states decay at rates of many magnitudes, so that a token matters long after it was read."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_((1.5 * noise - 2).bfloat16().float())


JAMBA = HYBRID | {
    "num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2,
    "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 6,
}  # fmt: skip
JAMBA_DENSE = HYBRID | {
    "num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 0, "num_experts": 1, "mamba_d_state": 8,
    "mamba_d_conv": 3, "mamba_expand": 3, "mamba_dt_rank": 5, "mamba_proj_bias": True, "mamba_conv_bias": False,
    "tie_word_embeddings": True, "num_key_value_heads": 1,
}  # fmt: skip


CASES = (
    Case(
        "mamba-tied",
        "mamba",
        PURE | {"state_size": 5, "conv_kernel": 4, "time_step_rank": 3},
        adapt=remember,
        dtype=torch.bfloat16,
        written={
            "d_model": 32,
            "d_inner": 64,
            "n_layer": 3,
            "rms_norm": True,
            "fused_add_norm": True,
            "ssm_cfg": {},
            "pad_vocab_size_multiple": 8,
        },
    ),
    Case(
        "mamba-untied-biases",
        "mamba",
        PURE
        | {
            "state_size": 8,
            "conv_kernel": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "expand": 3,
            "tie_word_embeddings": False,
            "residual_in_fp32": False,
        },
        adapt=remember,
        convert=_backbone,
    ),
    Case(
        "falcon-mamba-tied",
        "falcon_mamba",
        PURE | {"state_size": 6, "time_step_rank": 4},
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "falcon-mamba-untied-biases",
        "falcon_mamba",
        PURE
        | {
            "state_size": 8,
            "conv_kernel": 2,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
            "mixer_rms_eps": 1e-3,
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "mamba2-groups",
        "mamba2",
        PURE | {"num_heads": 8, "head_dim": 8, "state_size": 12, "n_groups": 2, "chunk_size": 8},
        adapt=remember,
        dtype=torch.bfloat16,
        written={"norm_before_gate": True, "rms_norm": True},
    ),
    Case(
        "mamba2-limits-biases-tied",
        "mamba2",
        PURE
        | {
            "num_heads": 3,
            "head_dim": 32,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 4,
            "expand": 3,
            "conv_kernel": 3,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": True,
            "time_step_limit": (0.3, 0.9),
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case("jamba-experts", "jamba", JAMBA, adapt=remember, dtype=torch.bfloat16),
    Case("jamba-dense-tied-biases", "jamba", JAMBA_DENSE, adapt=remember, dtype=torch.bfloat16),
    Case(
        "bamba-groups",
        "bamba",
        HYBRID
        | {
            "num_hidden_layers": 3,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_state": 12,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 8,
        },
        adapt=remember,
        dtype=torch.bfloat16,
        old_names=True,
        written={"mamba_d_head": "auto"},
    ),
    Case(
        "bamba-tied-biases",
        "bamba",
        HYBRID
        | {
            "num_hidden_layers": 4,
            "attn_layer_indices": [0, 2],
            "mamba_n_heads": 4,
            "mamba_d_state": 8,
            "mamba_d_conv": 3,
            "mamba_chunk_size": 4,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "time_step_limit": (0.4, 1.0),
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "granitemoehybrid-experts",
        "granitemoehybrid",
        HYBRID
        | GRANITE
        | {
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "intermediate_size": 20,
            "mamba_chunk_size": 8,
        },
        adapt=remember,
        dtype=torch.bfloat16,
        written={
            "layer_types": ["mamba", "attention", "mamba"],
            "position_embedding_type": "nope",
            "normalization_function": "rmsnorm",
            "init_method": "mup",
            "mamba_d_head": "auto",
        },
    ),
    Case(
        "granitemoehybrid-dense-turned",
        "granitemoehybrid",
        HYBRID
        | GRANITE
        | {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "position_embedding_type": "rope",
            "mamba_n_groups": 1,
            "mamba_d_conv": 3,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "mamba_chunk_size": 4,
            "time_step_limit": (0.4, 1.0),
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "nemotron-h-dense",
        "nemotron_h",
        HYBRID
        | {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "head_dim": 12,
            "mamba_num_heads": 6,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 12,
            "chunk_size": 8,
        },
        adapt=remember,
        dtype=torch.bfloat16,
        written=_nemotron("linear_attention", "mlp", "full_attention", "linear_attention") | {"norm_eps": 1e-5},
    ),
    Case(
        "nemotron-h-experts-biases",
        "nemotron_h",
        HYBRID
        | {
            "layers_block_type": ["full_attention", "moe", "linear_attention", "moe", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "ssm_state_size": 8,
            "chunk_size": 4,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "n_group": 2,
            "topk_group": 1,
            "moe_shared_expert_intermediate_size": 28,
            "routed_scaling_factor": 1.5,
            "use_bias": True,
            "use_conv_bias": False,
            "mlp_bias": True,
            "conv_kernel": 3,
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "nemotron-h-latent-experts",
        "nemotron_h",
        HYBRID
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 4,
            "ssm_state_size": 8,
            "chunk_size": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "moe_latent_size": 12,
            "moe_shared_expert_intermediate_size": 24,
            "norm_topk_prob": False,
        },
        dtype=torch.bfloat16,
        adapt=remember,
        written={"layers_block_type": ["mamba", "moe", "attention", "moe"]},
    ),
    Case(
        "falcon-h1-factors",
        "falcon_h1",
        HYBRID
        | {
            "num_hidden_layers": 2,
            "mamba_d_ssm": 48,
            "mamba_n_heads": 6,
            "mamba_d_head": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 12,
            "mamba_chunk_size": 8,
            "mlp_multipliers": [0.8, 0.6],
            "key_multiplier": 0.7,
            "ssm_multipliers": [0.9, 0.8, 0.7, 1.2, 1.1],
            "attention_out_multiplier": 0.6,
            "attention_in_multiplier": 1.3,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.9,
            "embedding_multiplier": 2.0,
            "lm_head_multiplier": 0.5,
            "head_dim": 12,
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "falcon-h1-norm-biases-tied",
        "falcon_h1",
        HYBRID
        | {
            "num_hidden_layers": 2,
            "mamba_d_ssm": None,
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_d_conv": 3,
            "mamba_chunk_size": 4,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "time_step_limit": (0.4, 1.0),
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "falcon-h1-norm-before-gate",
        "falcon_h1",
        HYBRID
        | {
            "num_hidden_layers": 2,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 4,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
        },
        adapt=remember,
        dtype=torch.bfloat16,
    ),
    Case(
        "lfm2-adjusted",
        "lfm2",
        HYBRID
        | {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_multiple_of": 8,
            "intermediate_size": 48,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "lfm2-biases-untied",
        "lfm2",
        HYBRID
        | {
            "num_hidden_layers": 3,
            "full_attn_idxs": [0],
            "block_auto_adjust_ff_dim": False,
            "conv_bias": True,
            "conv_L_cache": 4,
            "tie_word_embeddings": False,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "lfm2-moe",
        "lfm2_moe",
        HYBRID
        | {
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 20,
            "routed_scaling_factor": 1.5,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "lfm2-moe-without-correction",
        "lfm2_moe",
        HYBRID
        | {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "conv", "conv"],
            "num_dense_layers": 0,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "conv_bias": True,
            "tie_word_embeddings": False,
        },
        dtype=torch.bfloat16,
    ),
)
