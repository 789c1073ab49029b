"""ALiBi: Bloom, MPT, and Baichuan, which transformers has no class for: Llama under other names, the 13B with ALiBi."""

import types
from typing import Any

import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from reference_cases.case import SMALL, Case


def _pack(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama's tensors with queries, keys and values in one, as Baichuan's files hold them."""
    packed = {}
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            parts = [tensor, *(tensors[name.replace("q_proj", other)] for other in ("k_proj", "v_proj"))]
            packed[name.replace("q_proj", "W_pack")] = torch.cat(parts)
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            packed[name] = tensor
    return packed


def _with_alibi(model: torch.nn.Module) -> None:
    """Llama without rotation, its scores biased by distance."""
    config, forward = model.config, model.forward
    head_dim = config.hidden_size // config.num_attention_heads

    def unturned(
        self: torch.nn.Module, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*position_ids.shape, head_dim)
        return torch.ones(shape), torch.zeros(shape)

    def biased(self: torch.nn.Module, ids: torch.Tensor, **options: Any) -> Any:
        length = ids.shape[1]
        bias = build_alibi_tensor(torch.ones(1, length), config.num_attention_heads, torch.float32)
        hidden = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask = (bias.expand(-1, length, -1)).masked_fill(hidden < 0, torch.finfo(torch.float32).min)
        return forward(ids, attention_mask=mask[None], **options)

    model.model.rotary_emb.forward = types.MethodType(unturned, model.model.rotary_emb)
    model.forward = types.MethodType(biased, model)


BAICHUAN: dict[str, Any] = {
    "model_type": "baichuan", "attention_bias": None, "head_dim": None, "mlp_bias": None, "num_key_value_heads": None,
    "rope_theta": None, "rope_scaling": None,
}  # fmt: skip
"""What its files say otherwise than Llama's, or leave out."""

CASES = (
    Case(
        "bloom-bare-names", "bloom",
        {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        dtype=torch.bfloat16,
        drop_prefix="transformer.",
    ),
    Case(
        "bloom-3-heads-untied", "bloom",
        {"vocab_size": 97, "hidden_size": 36, "n_layer": 2, "n_head": 3, "tie_word_embeddings": False},
        dtype=torch.bfloat16,
        written={"hidden_size": None, "n_embed": 36, "seq_length": 64},
    ),
    Case(
        "mpt-4-heads", "mpt",
        {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
        dtype=torch.bfloat16,
        written={"architectures": ["MPTForCausalLM"]},
    ),
    Case(
        "mpt-6-heads-clipped", "mpt",
        {
            "vocab_size": 97, "d_model": 36, "n_layers": 2, "n_heads": 6, "max_seq_len": 64,
            "attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.5}, "tie_word_embeddings": False,
        },
        dtype=torch.bfloat16,
    ),
    Case(
        "baichuan-turned", "llama",
        SMALL | {"hidden_size": 32, "num_attention_heads": 4},
        dtype=torch.bfloat16,
        old_names=True,
        convert=_pack,
        written=BAICHUAN | {"architectures": ["BaiChuanForCausalLM"]},
    ),
    Case(
        "baichuan-alibi-5-heads", "llama",
        SMALL | {"hidden_size": 40, "num_attention_heads": 5},
        dtype=torch.bfloat16,
        old_names=True,
        adapt=_with_alibi,
        convert=_pack,
        written=BAICHUAN | {
            "architectures": ["BaichuanForCausalLM"], "model_max_length": 64, "max_position_embeddings": None,
        },
    ),
)  # fmt: skip
