"""GPT-2's kin: GPTBigCode, OPT, GPT-Neo, and CodeGen."""

import torch

from reference_cases.case import Case

CASES = (
    Case(
        "gpt-bigcode-one-key", "gpt_bigcode",
        {
            "vocab_size": 97, "n_embd": 36, "n_head": 3, "n_layer": 2, "n_positions": 64, "bos_token_id": 96,
            "eos_token_id": 96,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "gpt-bigcode-head-by-head", "gpt_bigcode",
        {
            "vocab_size": 97, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 48, "n_inner": 40,
            "multi_query": False, "activation_function": "relu", "tie_word_embeddings": False, "bos_token_id": None,
            "eos_token_id": None,
        },
        drop_prefix="transformer.",
    ),
    Case(
        "opt-norm-first", "opt",
        {
            "vocab_size": 97, "hidden_size": 36, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "max_position_embeddings": 64,
        },
        dtype=torch.float16,
    ),
    Case(
        "opt-norm-last-projected", "opt",
        {
            "vocab_size": 97, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "do_layer_norm_before": False, "word_embed_proj_dim": 20,
            "activation_function": "gelu", "tie_word_embeddings": False, "bos_token_id": None,
        },
        drop_prefix="model.",
    ),
    Case(
        "opt-without-biases-or-final-norm", "opt",
        {
            "vocab_size": 97, "hidden_size": 32, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "enable_bias": False, "_remove_final_layer_norm": True,
            "word_embed_proj_dim": 20,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "gpt-neo-every-other-window", "gpt_neo",
        {
            "vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]], "window_size": 5, "bos_token_id": 96, "eos_token_id": 96,
        },
        dtype=torch.bfloat16,
        extra_tensors={"transformer.h.0.attn.attention.bias": (1, 1, 64, 64)},
    ),
    Case(
        "gpt-neo-mixed-windows-untied", "gpt_neo",
        {
            "vocab_size": 97, "hidden_size": 36, "num_layers": 3, "num_heads": 3, "max_position_embeddings": 48,
            "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 7, "intermediate_size": 40,
            "activation_function": "relu", "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "codegen-partly-turned", "codegen",
        {
            "vocab_size": 97, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_ctx": 64,
            "rotary_dim": 4, "bos_token_id": 96, "eos_token_id": 96,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "codegen-8-heads", "codegen",
        {
            "vocab_size": 97, "n_embd": 32, "n_head": 8, "n_layer": 2, "n_positions": 64, "n_ctx": 64,
            "rotary_dim": 4, "n_inner": 40, "activation_function": "relu", "bos_token_id": None, "eos_token_id": None,
        },
        dtype=torch.float16,
    ),
)  # fmt: skip
