"""Rotary families with LayerNorm: parallel blocks, partly turned heads, fused projections, biases."""

import torch

from reference_cases.case import SMALL, Case


def _embed_out(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-NeoX's head under the name that published checkpoints give it."""
    return {name.replace("lm_head", "embed_out"): tensor for name, tensor in tensors.items()}


CASES = (
    Case(
        "phi-half-turned", "phi",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "bos_token_id": None},
        dtype=torch.bfloat16,
    ),
    Case(
        "phi-qk-norm-groups", "phi",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "qk_layernorm": True,
            "partial_rotary_factor": 0.34, "hidden_act": "gelu", "eos_token_id": [3, 4],
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        },
    ),
    Case(
        "stablelm-biases", "stablelm",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "use_qkv_bias": True},
        dtype=torch.bfloat16,
    ),
    Case(
        "stablelm-parallel-head-norms", "stablelm",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "use_parallel_residual": True,
            "qk_layernorm": True, "partial_rotary_factor": 0.5, "tie_word_embeddings": True,
        },
    ),
    Case(
        "stablelm-first-names", "stablelm",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4},
        dtype=torch.bfloat16,
        old_names=True,
        written={
            "architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch", "rope_pct": 0.25,
            "norm_eps": 1e-5, "rotary_scaling_factor": 1.0, "partial_rotary_factor": None, "layer_norm_eps": None,
            "use_parallel_residual": None, "qk_layernorm": None,
        },
    ),
    Case(
        "gpt-neox-parallel", "gpt_neox",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "hidden_act": "gelu"},
        dtype=torch.float16,
        extra_tensors={
            "gpt_neox.layers.0.attention.bias": (1, 1, 64, 64), "gpt_neox.layers.1.attention.masked_bias": (),
        },
        convert=_embed_out,
    ),
    Case(
        "gpt-neox-one-after-the-other", "gpt_neox",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "use_parallel_residual": False, "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
            "hidden_act": "gelu_new",
        },
        convert=_embed_out,
        written={"rope_parameters": None, "rotary_pct": 1.0, "rotary_emb_base": 500},
    ),
    Case(
        "gpt-neox-japanese", "gpt_neox_japanese",
        {
            "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
            "intermediate_multiple_size": 2, "max_position_embeddings": 64,
        },
        dtype=torch.bfloat16,
        convert=_embed_out,
    ),
    Case(
        "gpt-neox-japanese-partly-turned", "gpt_neox_japanese",
        {
            "vocab_size": 97, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_multiple_size": 3, "max_position_embeddings": 64, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
        convert=_embed_out,
        written={"rope_parameters": None, "rotary_pct": 0.5, "rotary_emb_base": 500},
    ),
    Case(
        "gptj-partly-turned", "gptj",
        {
            "vocab_size": 97, "n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "rotary_dim": 8,
            "bos_token_id": 96, "eos_token_id": 96,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "gptj-wholly-turned", "gptj",
        {
            "vocab_size": 97, "n_embd": 36, "n_head": 3, "n_layer": 2, "n_positions": 64, "rotary_dim": 12,
            "n_inner": 40, "activation_function": "gelu", "bos_token_id": None, "eos_token_id": None,
        },
    ),
    Case(
        "starcoder2-window-tied", "starcoder2",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6},
        dtype=torch.bfloat16,
    ),
    Case(
        "starcoder2-without-biases", "starcoder2",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "use_bias": False,
            "tie_word_embeddings": False, "hidden_act": "gelu",
        },
        old_names=True,
    ),
    Case(
        "nemotron-half-turned", "nemotron",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2},
        dtype=torch.bfloat16,
        old_names=True,
    ),
    Case(
        "nemotron-wide-heads-biases", "nemotron",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16,
            "attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.25, "hidden_act": "relu",
        },
    ),
    Case(
        "persimmon-half-turned", "persimmon",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4},
        dtype=torch.bfloat16,
    ),
    Case(
        "persimmon-without-norms", "persimmon",
        SMALL | {
            "hidden_size": 36, "num_attention_heads": 3, "qk_layernorm": False, "partial_rotary_factor": 0.34,
            "hidden_act": "gelu",
        },
        old_names=True,
    ),
)  # fmt: skip
