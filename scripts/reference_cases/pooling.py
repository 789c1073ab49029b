"""Models that generate nothing: encoders with each of their heads, decoders that embed, classify and reward."""

from typing import Any

import torch

from reference_cases.case import SMALL, Case
from reference_cases.state_space import JAMBA, JAMBA_DENSE, remember

NO_PADDING = {"pad_token_id": 96}  # an id that no recorded sequence holds

BERT = SMALL | NO_PADDING | {"hidden_size": 36, "num_attention_heads": 3}
BERT_OTHER = SMALL | NO_PADDING | {
    "hidden_size": 32, "num_attention_heads": 2, "hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-6,
    "num_hidden_layers": 3,
}  # fmt: skip
ROBERTA = BERT | {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
XLM = BERT_OTHER | {"pad_token_id": 3, "hidden_act": "gelu", "type_vocab_size": 2}
MODERN = SMALL | {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 96,
    "bos_token_id": 95, "eos_token_id": 94, "cls_token_id": 95, "sep_token_id": 94,
}  # fmt: skip
MODERN_OTHER = MODERN | {
    "hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True,
    "norm_bias": True, "classifier_bias": True, "classifier_pooling": "mean", "hidden_activation": "gelu_new",
    "classifier_activation": "relu",
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
    },
}  # fmt: skip
MODERN_OLD_NAMES = {
    "layer_types": None, "rope_parameters": None, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0, "reference_compile": None,
}  # fmt: skip

HEADS = {
    "classes": "AutoModelForSequenceClassification",
    "token-classes": "AutoModelForTokenClassification",
    "masked": "AutoModelForMaskedLM",
}
THREE_LABELS = {"num_labels": 3}


def tensorflow_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As BERT's first checkpoints have them."""
    names = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in names:
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


def encoders() -> list[Case]:
    cases = [
        Case("bert-3-heads", "bert", BERT, "AutoModel", extra_tensors={"embeddings.position_ids": (1, 64)}),
        Case("bert-3-segments", "bert", BERT_OTHER, "AutoModel", dtype=torch.bfloat16, convert=tensorflow_names),
        Case("bert-pairs", "bert", BERT | {"num_labels": 1}, HEADS["classes"]),
        Case("roberta-3-heads", "roberta", ROBERTA, "AutoModel"),
        Case("xlm-roberta-other-padding", "xlm-roberta", XLM, "AutoModel", dtype=torch.float16),
        Case("camembert", "camembert", CAMEMBERT, "AutoModel"),
        Case("modernbert-windows", "modernbert", MODERN, "AutoModel", written=MODERN_OLD_NAMES),
        Case("modernbert-biases", "modernbert", MODERN_OTHER, "AutoModel", dtype=torch.bfloat16),
    ]
    for head, auto_class in HEADS.items():
        untied: dict[str, Any] = {"tie_word_embeddings": False} if head == "masked" else THREE_LABELS
        cases += [
            Case(f"bert-{head}", "bert", BERT, auto_class),
            Case(f"bert-{head}-3-segments", "bert", BERT_OTHER | untied, auto_class, convert=tensorflow_names),
            Case(f"roberta-{head}", "roberta", ROBERTA, auto_class),
            Case(f"xlm-roberta-{head}", "xlm-roberta", XLM | untied, auto_class),
            Case(f"camembert-{head}", "camembert", CAMEMBERT | untied, auto_class),
            Case(f"modernbert-{head}", "modernbert", MODERN, auto_class, written=MODERN_OLD_NAMES),
            Case(f"modernbert-{head}-biases", "modernbert", MODERN_OTHER | untied, auto_class),
        ]
    return cases


LLAMA = SMALL | NO_PADDING | {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1}
LLAMA_OTHER = SMALL | {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "pad_token_id": None,
}  # fmt: skip
MISTRAL = LLAMA | {"sliding_window": 5}
MISTRAL_OTHER = SMALL | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}
QWEN2 = LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
QWEN2_OTHER = SMALL | {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
QWEN3 = LLAMA | {"head_dim": 16, "tie_word_embeddings": True}
QWEN3_OTHER = LLAMA_OTHER | {"head_dim": 8}


GEMMA = LLAMA | {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 20}
GEMMA_OTHER = LLAMA_OTHER | {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None}
GPT2 = {"vocab_size": 97, "n_positions": 64, "n_layer": 2, "pad_token_id": 96}
CLASSIFIERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma": (LLAMA | {"head_dim": 16}, LLAMA_OTHER | {"head_dim": 8}),
    "gemma2": (GEMMA, GEMMA_OTHER),
    "phi3": (LLAMA | {"sliding_window": 5}, LLAMA_OTHER | {"attention_bias": False}),
    "gpt2": (GPT2 | {"n_embd": 36, "n_head": 3}, GPT2 | {"n_embd": 32, "n_head": 4, "n_inner": 40}),
}

CAMEMBERT = ROBERTA | {"hidden_size": 24}


def generator_of(model: torch.nn.Module) -> torch.Generator:
    return torch.Generator().manual_seed(sum(parameter.numel() for parameter in model.parameters()))


def with_score_of_two_layers(model: torch.nn.Module) -> None:
    """Qwen2.5-Math's reward models, which transformers has no class for, score each token."""
    size, scores = model.config.hidden_size, model.config.num_labels
    layers = torch.nn.Sequential(torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, scores))
    generator = generator_of(model)
    for parameter in layers.parameters():
        parameter.data.copy_((0.3 * torch.randn(parameter.shape, generator=generator)).bfloat16().float())
    model.score = layers


def without_bias(model: torch.nn.Module) -> None:
    model.score.bias.data.zero_()


def internlm2_names(tensors: dict[str, torch.Tensor], heads: int, groups: int) -> dict[str, torch.Tensor]:
    """Llama's tensors as InternLM2 names them, with queries, keys and values fused group by group."""
    names = {
        "model.embed_tokens.weight": "model.tok_embeddings.weight", "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
        "score.weight": "v_head.weight",
    }  # fmt: skip
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name or name == "score.bias":
            continue
        if "q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            parts = [part.reshape(groups, -1, part.shape[0] // (heads if part is parts[0] else groups), part.shape[1])
                     for part in parts]  # fmt: skip
            name, tensor = name.replace("self_attn.q_proj", "attention.wqkv"), torch.cat(parts, dim=1).flatten(0, 2)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor.clone()
    return renamed


def decoders() -> list[Case]:
    families = {
        "llama": (LLAMA, LLAMA_OTHER),
        "mistral": (MISTRAL, MISTRAL_OTHER),
        "qwen2": (QWEN2, QWEN2_OTHER),
        "qwen3": (QWEN3, QWEN3_OTHER),
    }
    cases = []
    for family, (one, other) in families.items():
        cases += [
            Case(f"{family}-embedding", family, one, "AutoModel"),
            Case(f"{family}-embedding-other", family, other, "AutoModel", dtype=torch.bfloat16, old_names=True),
            Case(f"{family}-classes", family, one | {"num_labels": 1}, HEADS["classes"]),
            Case(f"{family}-classes-other", family, other | THREE_LABELS, HEADS["classes"], dtype=torch.bfloat16),
        ]
    for name, config in (("", JAMBA | {"num_labels": 1}), ("-other", JAMBA_DENSE | THREE_LABELS)):
        own = NO_PADDING | config
        cases.append(Case(f"jamba-classes{name}", "jamba", own, HEADS["classes"], adapt=remember, dtype=torch.bfloat16))
    for family, (one, other) in CLASSIFIERS.items():
        cases += [
            Case(f"{family}-classes", family, one | {"num_labels": 1}, HEADS["classes"]),
            Case(f"{family}-classes-other", family, other | THREE_LABELS, HEADS["classes"], dtype=torch.bfloat16),
        ]
    cases += [
        Case("gemma2-embedding", "gemma2", GEMMA, "AutoModel"),
        Case("gemma2-embedding-other", "gemma2", GEMMA_OTHER, "AutoModel", dtype=torch.bfloat16, old_names=True),
    ]
    for name, config in (("", QWEN2), ("-other", QWEN2_OTHER)):
        for kind, scores in (("Reward", 1), ("ProcessReward", 2)):
            cases.append(
                Case(
                    f"qwen2-{kind.lower()}{name}",
                    "qwen2",
                    config | {"num_labels": scores},
                    HEADS["token-classes"],
                    adapt=with_score_of_two_layers,
                    written={"architectures": [f"Qwen2For{kind}Model"]},
                )
            )
    for name, heads, groups in (("", 3, 1), ("-other", 4, 2)):
        cases.append(
            Case(
                f"internlm2-reward{name}",
                "llama",
                SMALL
                | {"hidden_size": 12 * heads, "num_attention_heads": heads, "num_key_value_heads": groups}
                | {"num_labels": 1},
                HEADS["token-classes"],
                adapt=without_bias,
                convert=lambda tensors, heads=heads, groups=groups: internlm2_names(tensors, heads, groups),
                written={
                    "architectures": ["InternLM2ForRewardModel"],
                    "model_type": "internlm2",
                    "bias": False,
                    "reward_token_id": 96,
                    "attention_bias": None,
                    "mlp_bias": None,
                },
            )
        )
    return cases


CASES = (*encoders(), *decoders())
