"""Encoder-decoders: T5, BART and their kin."""

from typing import Any

import torch

from reference_cases.case import Case

T5 = {
    "vocab_size": 97, "d_model": 32, "d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 14, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
}  # fmt: skip
UNEVEN = {
    "encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 44,
}  # fmt: skip


def _let_distance_matter(model: torch.nn.Module) -> None:
    """T5 does not scale its scores, so that random queries would drown the biases, and scales what its head reads."""
    for name, parameter in model.named_parameters():
        if name.endswith("Attention.q.weight"):
            parameter.data *= 0.125
        elif "relative_attention_bias" in name or name == "shared.weight":
            parameter.data *= 8


def _untie(model: torch.nn.Module) -> None:
    """Gives T5 1.1 the head of its own that transformers 5 always takes for the embedding."""
    _let_distance_matter(model)
    generator = torch.Generator().manual_seed(7)
    weight = 0.3 * torch.randn(model.lm_head.weight.shape, generator=generator)
    model.lm_head.weight = torch.nn.Parameter(weight.bfloat16().float())
    model.config.tie_word_embeddings = False


def _turn_positions(model: torch.nn.Module) -> None:
    """Gives positions that are sines and cosines back what the recorder's random numbers took."""
    for module in model.modules():
        if hasattr(module, "create_weight"):
            module.weight.data = module.create_weight()


def _case(name: str, model_type: str, config: dict[str, Any], **more: Any) -> Case:
    more = {"dtype": torch.bfloat16} | more
    return Case(name, model_type, config, auto_class="AutoModelForSeq2SeqLM", **more)


CASES = (
    _case(
        "t5-first", "t5", T5,
        adapt=_let_distance_matter,
        extra_tensors={
            "encoder.embed_tokens.weight": (97, 32),
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (8, 4),
        },
        written={
            "architectures": ["T5WithLMHeadModel"], "scale_decoder_outputs": None, "n_positions": 64,
            "dense_act_fn": None, "is_gated_act": None,
        },
    ),
    _case(
        "t5-gated-untied-deeper-decoder", "t5",
        T5 | {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 3, "num_heads": 3, "tie_word_embeddings": False},
        adapt=_untie,
    ),
    _case("mt5-as-published", "mt5", T5 | {"relative_attention_num_buckets": 10}, adapt=_untie),
    _case(
        "mt5-said-to-be-tied", "mt5", T5 | {"num_heads": 3, "num_decoder_layers": 1},
        adapt=_untie,
        written={"tie_word_embeddings": True},
    ),
    _case("bart-scaled", "bart", BART | {"scale_embedding": True}),
    _case(
        "bart-uneven-bare-names", "bart", BART | UNEVEN | {"activation_function": "gelu_new"},
        drop_prefix="model.",
        extra_tensors={"encoder.embed_tokens.weight": (97, 32), "decoder.embed_tokens.weight": (97, 32)},
        written={
            "normalize_before": False, "add_final_layer_norm": False, "static_position_embeddings": False,
            "num_hidden_layers": 1, "forced_bos_token_id": 0, "force_bos_token_to_be_generated": True,
        },
    ),
    _case("mbart", "mbart", BART | {"decoder_start_token_id": 5}),
    _case("mbart-uneven-scaled", "mbart", BART | UNEVEN | {"scale_embedding": True, "decoder_start_token_id": 5}),
    _case(
        "pegasus-scaled", "pegasus", BART | {"scale_embedding": True, "activation_function": "relu"},
        adapt=_turn_positions,
    ),
    _case("pegasus-uneven", "pegasus", BART | UNEVEN, adapt=_turn_positions),
    _case(
        "marian-scaled", "marian",
        BART | {
            "scale_embedding": True, "activation_function": "silu", "decoder_start_token_id": 96, "pad_token_id": 96,
        },
        adapt=_turn_positions,
    ),
    _case(
        "marian-uneven", "marian", BART | UNEVEN | {"decoder_start_token_id": 96, "pad_token_id": 96},
        adapt=_turn_positions,
    ),
)  # fmt: skip
