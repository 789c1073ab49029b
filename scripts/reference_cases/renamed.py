"""Models that transformers has no class for, as classes of the same mathematics under the published names: ChatGLM,
Qwen, Ling, Solar Pro, MiniCPM-MoE."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from reference_cases.case import SMALL, Case
from reference_cases.dense import GRANITE_FACTORS, Tensors, published, renamed
from reference_cases.moe import _gate_half
from reference_cases.recent import FOUR, THREE


def fused(convert: Callable[[Tensors], Tensors], joined: str) -> Callable[[Tensors], Tensors]:
    """After `convert`: queries, keys and values in one tensor called `joined`."""

    def fuse(tensors: Tensors) -> Tensors:
        tensors = convert(tensors)
        for name in [name for name in tensors if ".q_proj." in name]:
            parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            tensors[name.replace("q_proj", joined)] = torch.cat(parts)
        return tensors

    return fuse


CHATGLM = fused(
    renamed(
        (r"^model\.embed_tokens", "transformer.embedding.word_embeddings"),
        (r"^model\.norm", "transformer.encoder.final_layernorm"), (r"^model\.layers", "transformer.encoder.layers"),
        (r"^lm_head", "transformer.output_layer"), (r"self_attn\.o_proj", "self_attention.dense"),
        (r"self_attn", "self_attention"), (r"mlp\.gate_up_proj", "mlp.dense_h_to_4h"),
        (r"mlp\.down_proj", "mlp.dense_4h_to_h"),
    ),
    "query_key_value",
)  # fmt: skip
QWEN = fused(
    renamed(
        (r"^model\.embed_tokens", "transformer.wte"), (r"^model\.norm", "transformer.ln_f"),
        (r"^model\.layers", "transformer.h"), (r"input_layernorm", "ln_1"), (r"post_attention_layernorm", "ln_2"),
        (r"self_attn\.o_proj", "attn.c_proj"), (r"self_attn", "attn"), (r"mlp\.gate_proj", "mlp.w2"),
        (r"mlp\.up_proj", "mlp.w1"), (r"mlp\.down_proj", "mlp.c_proj"),
    ),
    "c_attn",
)  # fmt: skip
LING = fused(
    renamed(
        (r"embed_tokens", "word_embeddings"), (r"self_attn\.o_proj", "attention.dense"), (r"self_attn", "attention"),
        (r"attention\.q_norm", "attention.query_layernorm"), (r"attention\.k_norm", "attention.key_layernorm"),
        (r"mlp\.gate\.e_score_correction_bias", "mlp.gate.expert_bias"),
    ),
    "query_key_value",
)  # fmt: skip


def ling(tensors: Tensors) -> Tensors:
    """Qwen2-MoE with gates of a half, the half in the shared experts' last projections."""
    tensors = {name: tensor for name, tensor in tensors.items() if "shared_expert_gate" not in name}
    for name in [name for name in tensors if ".shared_expert." in name]:
        half = 0.5 if "down_proj" in name else 1.0
        tensors[name.replace(".shared_expert.", ".shared_experts.")] = tensors.pop(name) * half
    return LING(tensors)


def minicpm_moe(tensors: Tensors) -> Tensors:
    """Granite's stacked experts one by one, as Mixtral calls them."""
    apart = {}
    for name, tensor in tensors.items():
        layer, found, part = name.partition(".block_sparse_moe.")
        if not found:
            apart[name] = tensor
        elif part == "router.layer.weight":
            apart[f"{layer}.mlp.gate.weight"] = tensor
        else:
            for i, expert in enumerate(tensor):
                named = zip(("w1", "w3"), expert.chunk(2), strict=True) if "input" in part else (("w2", expert),)
                apart |= {f"{layer}.mlp.experts.{i}.{ours}.weight": own.contiguous() for ours, own in named}
    return apart


def skipping(skips: dict[int, int], share: float, model: torch.nn.Module) -> None:
    """Mixes the input of each layer of `skips` with that of the earlier one it names."""
    inputs: dict[int, torch.Tensor] = {}

    def before(index: int, layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        inputs[index] = x = given[0]
        return (inputs[skips[index]] * share + x * (1 - share) if index in skips else x, *given[1:])

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(functools.partial(before, i))


def instead(architecture: str, model_type: str, gone: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    """The fields of a published config.json, without those of the recorded class's own."""
    return dict.fromkeys(gone) | published(architecture, model_type, **fields)


OF_GLM = ("attention_bias", "head_dim", "intermediate_size", "max_position_embeddings", "num_hidden_layers",
          "num_key_value_heads", "rms_norm_eps", "rope_parameters", "partial_rotary_factor", "vocab_size")  # fmt: skip


def chatglm(layers: int, groups: int, head_dim: int, **others: Any) -> dict[str, Any]:
    return instead(
        "ChatGLMModel", "chatglm", OF_GLM, padded_vocab_size=97, num_layers=layers,
        ffn_hidden_size=40, kv_channels=head_dim, seq_length=64, layernorm_epsilon=1.5625e-07, rmsnorm=True,
        multi_query_attention=True, multi_query_group_num=groups, post_layer_norm=True, original_rope=True,
        add_bias_linear=False, apply_residual_connection_post_layernorm=False,
    ) | others  # fmt: skip


OF_QWEN2 = ("intermediate_size", "layer_types", "max_window_layers", "num_key_value_heads", "rms_norm_eps",
            "rope_parameters", "sliding_window", "use_sliding_window")  # fmt: skip
OF_QWEN2_MOE = ("decoder_sparse_step", "layer_types", "max_window_layers", "mlp_only_layers", "qkv_bias",
                "shared_expert_intermediate_size", "sliding_window", "use_sliding_window")  # fmt: skip
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

CASES = (
    Case(
        "chatglm-biases", "glm",
        FOUR | {"head_dim": 8, "pad_token_id": 0, "attention_bias": True, "eos_token_id": 2},
        dtype=torch.bfloat16, convert=CHATGLM,
        written=chatglm(2, 2, 8, add_qkv_bias=True, hidden_act=None),
        extra_tensors={"transformer.rotary_pos_emb.inv_freq": (2,)},
    ),
    Case(
        "chatglm-rope-ratio", "glm",
        THREE | {
            "head_dim": 16, "pad_token_id": 0, "attention_bias": False, "num_hidden_layers": 3,
            "rope_parameters": HALF | {"rope_theta": 500000.0},
        },
        convert=CHATGLM,
        written=chatglm(3, 1, 16, rope_ratio=50, hidden_act=None)
        | {"architectures": ["ChatGLMForConditionalGeneration"]},
    ),
    Case(
        "qwen-fused", "qwen2", SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4},
        dtype=torch.bfloat16, convert=QWEN,
        written=instead(
            "QWenLMHeadModel", "qwen", OF_QWEN2, intermediate_size=80, kv_channels=8,
            layer_norm_epsilon=1e-6, no_bias=True, rotary_emb_base=10000, rotary_pct=1.0, seq_length=64,
            use_dynamic_ntk=True, use_logn_attn=True, use_flash_attn="auto", scale_attn_weights=True, hidden_act=None,
        ),
    ),
    Case(
        "qwen-gpt2-words", "qwen2",
        SMALL | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 3,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
        convert=QWEN,
        written=instead(
            "QWenLMHeadModel", "qwen", OF_QWEN2, ffn_hidden_size=40, kv_channels=12, n_embd=36,
            n_head=3, n_layer=3, n_positions=128, seq_length=64, layer_norm_epsilon=1e-6, rotary_emb_base=300,
            hidden_size=None, num_attention_heads=None, num_hidden_layers=None, max_position_embeddings=None,
            activation="swiglu", hidden_act=None, padded_vocab_size=97, pos_emb="rotary",
        ),
    ),
    Case(
        "bailing-moe-shared", "qwen2_moe",
        FOUR | {
            "moe_intermediate_size": 20, "shared_expert_intermediate_size": 40, "num_experts": 6,
            "num_experts_per_tok": 3, "qkv_bias": False, "norm_topk_prob": True,
        },
        dtype=torch.bfloat16, adapt=_gate_half, convert=ling, old_names=True,
        written=instead(
            "BailingMoeForCausalLM", "bailing_moe", OF_QWEN2_MOE, num_experts=6,
            num_local_experts=None, num_shared_experts=2, first_k_dense_replace=0, use_bias=False, norm_head=False,
            use_qkv_bias=False, embedding_dropout=0.0, norm_softmax=False,
        ),
    ),
    Case(
        "bailing-moe-biases-tied", "qwen2_moe",
        THREE | {
            "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4,
            "num_experts_per_tok": 2, "qkv_bias": True, "norm_topk_prob": False, "mlp_only_layers": [0],
            "tie_word_embeddings": True,
        },
        adapt=_gate_half, convert=ling,
        written=instead(
            "BailingMoeForCausalLM", "bailing_moe", OF_QWEN2_MOE, num_experts=4,
            num_local_experts=None, num_shared_experts=1, first_k_dense_replace=1, use_qkv_bias=True,
        ),
    ),
    Case(
        "bailing-moe-v2-groups", "glm4_moe",
        FOUR | {
            "head_dim": 12, "moe_intermediate_size": 20, "n_routed_experts": 8, "num_experts_per_tok": 3,
            "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "use_qk_norm": True,
            "first_k_dense_replace": 1, "partial_rotary_factor": 0.5, "num_hidden_layers": 3,
        },
        dtype=torch.bfloat16, convert=LING, old_names=True,
        written=published(
            "BailingMoeV2ForCausalLM", "bailing_moe_v2", attention_bias=None, num_experts=8, n_routed_experts=None,
            n_shared_experts=None, num_local_experts=None, num_shared_experts=1, use_bias=False, use_qkv_bias=False,
            score_function="sigmoid", moe_router_enable_expert_bias=True, moe_shared_expert_intermediate_size=20,
            use_rmsnorm=True, router_dtype="fp32",
        ),
    ),
    Case(
        "bailing-moe-v2-whole-heads-tied", "glm4_moe",
        THREE | {
            "moe_intermediate_size": 16, "n_routed_experts": 5, "num_experts_per_tok": 2, "n_shared_experts": 2,
            "use_qk_norm": False, "first_k_dense_replace": 0, "attention_bias": True, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
        },
        convert=LING,
        written=published(
            "BailingMoeV2ForCausalLM", "bailing_moe_v2", attention_bias=None, num_experts=5, n_routed_experts=None,
            n_shared_experts=None, num_local_experts=None, num_shared_experts=2, use_qkv_bias=True,
        ),
    ),
    Case(
        "solar-skips", "llama", FOUR | {"num_hidden_layers": 5},
        dtype=torch.bfloat16, old_names=True,
        adapt=functools.partial(skipping, {2: 1, 3: 1, 4: 3}, 0.75),
        written=published(
            "SolarForCausalLM", "solar", bskcn_1=[1, 3], bskcn_2=[1], bskcn_3=[2, 4], bskcn_4=[3],
            bskcn_tv=[0.9, 0.75], sliding_window=2047,
        ),
    ),
    Case(
        "solar-one-skip-biases", "llama", THREE | {"num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True},
        adapt=functools.partial(skipping, {2: 0}, 0.8),
        written=published("SolarForCausalLM", "solar", bskcn_1=[0], bskcn_2=[], bskcn_3=[2], bskcn_4=[]),
    ),
    Case(
        "minicpm-moe", "granitemoe",
        FOUR | {
            "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 20, "embedding_multiplier": 12.0,
            "residual_multiplier": 1.4 / 2**0.5, "attention_multiplier": 8**-0.5, "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
        dtype=torch.bfloat16, convert=minicpm_moe,
        written=instead(
            "MiniCPMForCausalLM", "minicpm", GRANITE_FACTORS, scale_emb=12, scale_depth=1.4,
            dim_model_base=8, num_experts=6, num_local_experts=None,
        ),
    ),
)  # fmt: skip
