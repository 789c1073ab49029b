"""Llama in all but a detail. Where transformers has no class, one of the same mathematics under the published names."""

import re
from typing import Any

import torch

from reference_cases.case import SMALL, Case

Tensors = dict[str, torch.Tensor]
NARROW = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
ODD = {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3}
WIDE = {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
LOW = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def renamed(*pairs: tuple[str, str]):
    """Tensors whose names are rewritten by every (regular expression, replacement) in turn."""

    def convert(tensors: Tensors) -> Tensors:
        out = {}
        for name, tensor in tensors.items():
            for pattern, replacement in pairs:
                name = re.sub(pattern, replacement, name)
            out[name] = tensor
        return out

    return convert


EXAONE = renamed(
    (r"^model\.embed_tokens", "transformer.wte"), (r"^model\.norm", "transformer.ln_f"),
    (r"^model\.layers", "transformer.h"), (r"input_layernorm", "ln_1"), (r"post_attention_layernorm", "ln_2"),
    (r"self_attn\.o_proj", "attn.attention.out_proj"), (r"self_attn", "attn.attention"),
    (r"mlp\.gate_proj", "mlp.c_fc_0"), (r"mlp\.up_proj", "mlp.c_fc_1"), (r"mlp\.down_proj", "mlp.c_proj"),
)  # fmt: skip
INTERNLM2 = renamed(
    (r"embed_tokens", "tok_embeddings"), (r"^lm_head", "output"), (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"), (r"self_attn\.o_proj", "attention.wo"), (r"self_attn", "attention"),
    (r"mlp\.gate_proj", "feed_forward.w1"), (r"mlp\.up_proj", "feed_forward.w3"),
    (r"mlp\.down_proj", "feed_forward.w2"),
)  # fmt: skip


def internlm2(kv_heads: int):
    """InternLM2's names, and its wqkv: for each key/value head its queries, then its key and its value."""

    def convert(tensors: Tensors) -> Tensors:
        tensors = INTERNLM2(tensors)
        for name in [name for name in tensors if ".q_proj." in name]:
            parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            groups = [part.unflatten(0, (kv_heads, -1)) for part in parts]
            tensors[name.replace("q_proj", "wqkv")] = torch.cat(groups, dim=1).flatten(0, 1)
        return tensors

    return convert


def as_exaone(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["ExaoneForCausalLM"], "model_type": "exaone", "num_layers": 2, "num_hidden_layers": None,
        "activation_function": "silu", "hidden_act": None, "layer_norm_epsilon": 1e-5, "rms_norm_eps": None,
        "attention_bias": None, "mlp_bias": None, "embed_dropout": 0.0,
    } | config  # fmt: skip


def published(architecture: str, model_type: str, **fields: Any) -> dict[str, Any]:
    """What config.json says in place of the recorded class's own fields."""
    return {"architectures": [architecture], "model_type": model_type} | fields


GRANITE_FACTORS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def minicpm(name: str, shape: dict[str, Any], scale_emb: float, scale_depth: float, base: int, **others: Any) -> Case:
    """MiniCPM is Granite with factors derived from its own."""
    config = shape | others.pop("config", {}) | {
        "embedding_multiplier": scale_emb, "residual_multiplier": scale_depth / 2**0.5,
        "attention_multiplier": (shape["hidden_size"] // shape["num_attention_heads"]) ** -0.5,
        "logits_scaling": shape["hidden_size"] / base,
    }  # fmt: skip
    written = published(
        "MiniCPMForCausalLM", "minicpm", scale_emb=scale_emb, scale_depth=scale_depth, dim_model_base=base,
        mlp_bias=None, **dict.fromkeys(GRANITE_FACTORS),
    )  # fmt: skip
    return Case(name, "granite", SMALL | config, written=written, **others)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4, "rope_theta": 1000.0}

CASES = (
    Case(
        "exaone-llama3-rope", "llama",
        SMALL | NARROW | {
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16, "rope_theta": 500.0,
            },
        },
        dtype=torch.bfloat16, old_names=True, convert=EXAONE, written=as_exaone({}),
    ),
    Case(
        "exaone-tied-wide-heads", "llama",
        SMALL | WIDE | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        convert=EXAONE, written=as_exaone({"head_dim": 16}),
    ),
    Case(
        "exaone4-windows", "exaone4",
        SMALL | NARROW | {
            "num_hidden_layers": 3, "sliding_window": 5, "sliding_window_pattern": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        dtype=torch.bfloat16, written={"layer_types": None, "sliding_window_pattern": "LLG"},
    ),
    Case(
        "exaone4-full-tied", "exaone4",
        SMALL | WIDE | {
            "sliding_window": None, "tie_word_embeddings": True, "layer_types": ["full_attention"] * 2,
        },
    ),
    Case(
        "smollm3-tied", "smollm3",
        SMALL | LOW | NARROW | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
        dtype=torch.bfloat16, old_names=True,
    ),
    Case(
        "smollm3-windows-biases", "smollm3",
        SMALL | LOW | ODD | {
            "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": False,
        },
        written={"no_rope_layers": None, "layer_types": None},
    ),
    Case("seed-oss-biases", "seed_oss", SMALL | WIDE, dtype=torch.bfloat16, old_names=True),
    Case(
        "seed-oss-other-biases", "seed_oss",
        SMALL | NARROW | {
            "head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    Case("arcee-yarn", "arcee", SMALL | LOW | NARROW | {"rope_parameters": YARN}, dtype=torch.bfloat16, old_names=True),
    Case(
        "arcee-tied-biases", "arcee",
        SMALL | LOW | ODD | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    Case(
        "ministral3-growing-queries", "ministral3",
        SMALL | LOW | WIDE | {
            "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "ministral3-window-tied", "ministral3",
        SMALL | LOW | NARROW | {
            "head_dim": 8, "sliding_window": 7, "tie_word_embeddings": True,
            "rope_parameters": YARN | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 8},
        },
    ),
    Case("helium-groups", "helium", SMALL | LOW | NARROW | {"head_dim": 8}, dtype=torch.bfloat16, old_names=True),
    Case(
        "helium-tied-biases", "helium",
        SMALL | LOW | ODD | {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True},
    ),
    minicpm("minicpm-old-names", NARROW, 12.0, 1.4, 8, dtype=torch.bfloat16, old_names=True),
    minicpm("minicpm-tied-biases", ODD, 2.0, 0.7, 18, config={"tie_word_embeddings": True, "attention_bias": True}),
    Case(
        "internlm-biases", "llama", SMALL | ODD | {"attention_bias": True},
        dtype=torch.bfloat16, old_names=True,
        written=published("InternLMForCausalLM", "internlm", bias=True, attention_bias=None, mlp_bias=None),
    ),
    Case(
        "internlm-tied", "llama", SMALL | ODD | {"tie_word_embeddings": True},
        written=published("InternLMForCausalLM", "internlm", bias=False, attention_bias=None, mlp_bias=None),
    ),
    Case(
        "internlm2-groups", "llama", SMALL | NARROW,
        dtype=torch.bfloat16, old_names=True, convert=internlm2(2),
        written=published(
            "InternLM2ForCausalLM", "internlm2", bias=False, attention_bias=None, mlp_bias=None,
            rope_scaling={"type": "dynamic", "factor": 2.0},
        ),
    ),
    Case(
        "internlm2-biases", "llama", SMALL | ODD | {"attention_bias": True, "num_key_value_heads": 1},
        convert=internlm2(1),
        written=published("InternLM2ForCausalLM", "internlm2", bias=True, attention_bias=None, mlp_bias=None),
    ),
    Case(
        "internlm3-wide-heads", "llama", SMALL | WIDE,
        dtype=torch.bfloat16, old_names=True,
        written=published(
            "InternLM3ForCausalLM", "internlm3", qkv_bias=False, bias=False, attention_bias=None, mlp_bias=None
        ),
    ),
    Case(
        "internlm3-biases-tied", "llama",
        SMALL | NARROW | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        written=published("InternLM3ForCausalLM", "internlm3"),
    ),
    Case(
        "orion-groups", "stablelm",
        SMALL | NARROW | {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
        dtype=torch.bfloat16,
        written=published(
            "OrionForCausalLM", "orion", rms_norm_eps=1e-5, max_sequence_length=64, layer_norm_eps=None,
            partial_rotary_factor=None, qk_layernorm=None, use_parallel_residual=None, use_qkv_bias=None,
            rope_parameters=None, rope_theta=10000.0,
        ),
    ),
    Case(
        "orion-tied", "stablelm",
        SMALL | ODD | {
            "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 1.0},
        },
        written=published(
            "OrionForCausalLM", "orion", rms_norm_eps=1e-5, layer_norm_eps=None, partial_rotary_factor=None,
            qk_layernorm=None, use_parallel_residual=None, use_qkv_bias=None,
        ),
    ),
    Case(
        "mimo-beside-draft-layers", "qwen2", SMALL | NARROW,
        dtype=torch.bfloat16, old_names=True,
        extra_tensors={"model.mtp_layers.0.input_proj.weight": (4, 8)},
        written=published("MiMoForCausalLM", "mimo", attention_bias=True, num_nextn_predict_layers=1),
    ),
    Case(
        "mimo-wide-heads", "qwen2", SMALL | WIDE | {"tie_word_embeddings": True},
        written=published("MiMoForCausalLM", "mimo", attention_bias=True),
    ),
    Case("ernie-tied", "ernie4_5", SMALL | NARROW | {"head_dim": 12}, dtype=torch.bfloat16, old_names=True),
    Case(
        "ernie-biases", "ernie4_5",
        SMALL | NARROW | {"head_dim": 8, "use_bias": True, "tie_word_embeddings": False},
        dtype=torch.float16,
    ),
    Case(
        "ministral-some-windows", "ministral",
        SMALL | NARROW | {
            "num_hidden_layers": 3, "sliding_window": 5, "head_dim": 12,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "ministral-tied", "ministral",
        SMALL | NARROW | {"head_dim": 8, "sliding_window": 7, "tie_word_embeddings": True},
        dtype=torch.float16, old_names=True, written={"layer_types": None},
    ),
    Case(
        "cwm-llama3-rope", "cwm",
        SMALL | NARROW | {
            "num_hidden_layers": 3, "sliding_window": 5, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16, "rope_theta": 500.0,
            },
        },
        dtype=torch.bfloat16, old_names=True, written={"layer_types": None},
    ),
    Case(
        "cwm-tied-wide-heads", "cwm",
        SMALL | NARROW | {
            "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "bos_token_id": 1,
            "eos_token_id": 2, "head_dim": 12, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 300.0},
        },
        dtype=torch.float16,
    ),
    Case(
        "hyperclovax-factors", "hyperclovax",
        SMALL | NARROW | {
            "embedding_multiplier": 10.0, "attention_multiplier": 0.25, "residual_multiplier": 0.4,
            "logits_scaling": 0.5,
        },
        dtype=torch.bfloat16, old_names=True,
    ),
    Case(
        "hyperclovax-tied-biases", "hyperclovax",
        SMALL | NARROW | {
            "num_attention_heads": 2, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
        },
        dtype=torch.float16,
    ),
    Case(
        "xverse", "llama", SMALL | NARROW | {"num_attention_heads": 2}, dtype=torch.float16, old_names=True,
        written=published("XverseForCausalLM", "xverse", attention_bias=None, mlp_bias=None),
    ),
    Case(
        "yi", "llama", SMALL | NARROW | {"rope_parameters": {"rope_theta": 5000.0}}, dtype=torch.bfloat16,
        old_names=True, written=published("YiForCausalLM", "Yi", attention_bias=None, mlp_bias=None),
    ),
    Case(
        "aquila", "llama", SMALL | ODD, dtype=torch.bfloat16, old_names=True,
        written=published("AquilaForCausalLM", "aquila", attention_bias=None, mlp_bias=None),
    ),
    Case(
        "aquila-model", "llama", SMALL | ODD | {"num_attention_heads": 2, "num_key_value_heads": 2},
        dtype=torch.float16, old_names=True,
        written=published("AquilaModel", "aquila", attention_bias=None, mlp_bias=None),
    ),
    Case(
        "llama-first-spelling", "llama", SMALL | NARROW, dtype=torch.float16, old_names=True,
        written=published("LLaMAForCausalLM", "llama", attention_bias=None, mlp_bias=None),
    ),
)  # fmt: skip
