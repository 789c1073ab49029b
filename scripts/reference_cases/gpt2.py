"""GPT-2: learned positions, LayerNorm, fused Conv1D projections."""

import torch

from reference_cases.case import Case

CASES = (
    Case(
        "gpt2-tied-3-heads", "gpt2",
        {
            "vocab_size": 97, "n_embd": 36, "n_head": 3, "n_layer": 2, "n_positions": 64, "bos_token_id": 96,
            "eos_token_id": 96,
        },
        dtype=torch.bfloat16,
        extra_tensors={"transformer.h.0.attn.bias": (1, 1, 64, 64), "transformer.h.1.attn.masked_bias": ()},
    ),
    Case(
        "gpt2-untied-bare-names", "gpt2",
        {
            "vocab_size": 101, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 48, "n_inner": 56,
            "activation_function": "relu", "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None,
        },
        drop_prefix="transformer.",
    ),
)  # fmt: skip
