"""DBRX (Databricks 2024): clipped queries, keys and values, LayerNorm without biases, sixteen experts, four a token.

Its checkpoints stack a layer's experts row upon row in one matrix for each of their projections.
"""

from typing import ClassVar

import jax.numpy as jnp

from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.norm import BiaslessLayerNorm
from jaxllm.layers.parameter import Layout, Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock

ROWS = Layout(lambda shape: (shape[0] * shape[1], shape[2]), lambda tensor, shape: tensor.reshape(shape))
"""[X, in, out], stored as [X * in, out]."""

ROWS_TRANSPOSED = Layout(
    lambda shape: (shape[0] * shape[2], shape[1]),
    lambda tensor, shape: jnp.swapaxes(tensor.reshape(shape[0], shape[2], shape[1]), 1, 2),
)
"""[X, in, out], stored as [X * out, in]."""


_WRITTEN_ALONG = (
    "add_cross_attention", "bos_token_id", "cross_attention_hidden_size", "eos_token_id", "finetuning_task",
    "is_encoder_decoder", "pruned_heads", "tie_encoder_decoder", "tie_word_embeddings",
)  # fmt: skip
"""Of the whole model, or nothing's: older versions of transformers wrote every field of theirs into each part."""


class DbrxBlock(MoEBlock):
    norm_class = BiaslessLayerNorm


class DbrxForCausalLM(LlamaForCausalLM):
    block_class = DbrxBlock
    checkpoint_prefix = "transformer."
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.wte.weight"),
        "layers.*.attention_norm.weight": Source.of("transformer.blocks.*.norm_attn_norm.norm_1.weight"),
        "layers.*.attention.qkv.kernel": Source.linear("transformer.blocks.*.norm_attn_norm.attn.Wqkv.weight"),
        "layers.*.attention.out.kernel": Source.linear("transformer.blocks.*.norm_attn_norm.attn.out_proj.weight"),
        "layers.*.mlp_norm.weight": Source.of("transformer.blocks.*.norm_attn_norm.norm_2.weight"),
        "layers.*.mlp.router.kernel": Source.linear("transformer.blocks.*.ffn.router.layer.weight"),
        "layers.*.mlp.experts.gate_up": Source(
            ("transformer.blocks.*.ffn.experts.mlp.w1", "transformer.blocks.*.ffn.experts.mlp.v1"), ROWS_TRANSPOSED
        ),
        "layers.*.mlp.experts.down": Source(("transformer.blocks.*.ffn.experts.mlp.w2",), ROWS),
        "norm.weight": Source.of("transformer.norm_f.weight"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        attention = Fields(fields.take("attn_config", dict, {}), "config.json: attn_config: ")
        experts = Fields(fields.take("ffn_config", dict, {}), "config.json: ffn_config: ")
        fields.raw("emb_pdrop")
        fields.rename(
            d_model="hidden_size", n_heads="num_attention_heads", n_layers="num_hidden_layers",
            max_seq_len="max_position_embeddings",
        )  # fmt: skip
        inner_size = experts.size("ffn_hidden_size", 3584)
        kv_heads, theta = attention.size("kv_n_heads", 1), attention.take("rope_theta", float, 10000.0)
        fields.expect("num_key_value_heads", kv_heads)
        fields.put("num_key_value_heads", kv_heads)
        fields.put("intermediate_size", inner_size)
        fields.put("hidden_act", experts.take("ffn_act_fn", dict, {"name": "silu"}).get("name"))
        unscaled = experts.raw("moe_normalize_expert_weights", 1.0) is None
        mixture = Mixture(
            sparse=(True,) * fields.size("num_hidden_layers"),
            num_experts=experts.size("moe_num_experts", 4),
            inner_size=inner_size,
            routing=SoftmaxTopK(
                experts.size("moe_top_k", 1),
                # The norm by which their sum is 1; null leaves them as they are.
                norm=None if unscaled else experts.take("moe_normalize_expert_weights", float, 1.0),
            ),
        )
        config = decoder_config(
            fields,
            architecture,
            rope_theta=theta,
            norm_eps=1e-5,
            clip_qkv=attention.take("clip_qkv", float, None),
            mixture=mixture,
        )
        for part in (attention, experts):
            part.ignore("architectures", "dtype", "hidden_size", "model_type", "torch_dtype", *_WRITTEN_ALONG)
            for name in ("moe_jitter_eps", "moe_loss_weight", "uniform_expert_assignment"):  # of training
                part.raw(name)
            part.finish()
        return config
