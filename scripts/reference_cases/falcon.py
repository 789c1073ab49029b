"""Falcon in its layouts."""

import torch

from reference_cases.case import Case


def _once(model: torch.nn.Module) -> None:
    """The eager path adds ALiBi twice, by the mask and by itself; the usual one does not."""
    model.config._attn_implementation = "sdpa"


SMALL = {"vocab_size": 97, "num_hidden_layers": 2, "max_position_embeddings": 64, "ffn_hidden_size": 40}

CASES = (
    Case(
        "falcon-one-key", "falcon",
        SMALL | {"hidden_size": 36, "num_attention_heads": 3},
        dtype=torch.bfloat16,
    ),
    Case(
        "falcon-groups-two-norms", "falcon",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
            "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "falcon-groups-one-norm-biases", "falcon",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1, "bias": True, "activation": "relu",
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "falcon-alibi-one-after-the-other", "falcon",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "alibi": True, "multi_query": False, "parallel_attn": False,
            "bias": True,
        },
        adapt=_once,
    ),
    Case(
        "falcon-first-names", "falcon",
        SMALL | {
            "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
            "ffn_hidden_size": 128,
        },
        dtype=torch.bfloat16,
        old_names=True,
        written={
            "architectures": ["RWForCausalLM"], "model_type": "RefinedWeb", "n_layer": 2, "n_head": 4, "n_head_kv": 2,
            "num_hidden_layers": None, "num_attention_heads": None, "num_kv_heads": None, "multi_query": None,
            "new_decoder_architecture": None, "ffn_hidden_size": None, "num_ln_in_parallel_attn": None,
            "parallel_attn": None, "max_position_embeddings": None, "rope_theta": None, "rope_scaling": None,
            "activation": None,
        },
    ),
)  # fmt: skip
