"""MPT (MosaicML 2023): ALiBi and LayerNorm without any bias."""

from typing import ClassVar

from jaxllm.layers.attention import slopes_of
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import BiaslessLayerNorm
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaBlock, LlamaForCausalLM


class MPTBlock(LlamaBlock):
    norm_class = BiaslessLayerNorm


class MPTForCausalLM(LlamaForCausalLM):
    block_class = MPTBlock
    mlp_class = MLP
    checkpoint_prefix = "transformer."
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.wte.weight"),
        "layers.*.attention_norm.weight": Source.of("transformer.blocks.*.norm_1.weight"),
        "layers.*.attention.qkv.kernel": Source.linear("transformer.blocks.*.attn.Wqkv.weight"),
        "layers.*.attention.out.kernel": Source.linear("transformer.blocks.*.attn.out_proj.weight"),
        "layers.*.mlp_norm.weight": Source.of("transformer.blocks.*.norm_2.weight"),
        "layers.*.mlp.up.kernel": Source.linear("transformer.blocks.*.ffn.up_proj.weight"),
        "layers.*.mlp.down.kernel": Source.linear("transformer.blocks.*.ffn.down_proj.weight"),
        "norm.weight": Source.of("transformer.norm_f.weight"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(
            d_model="hidden_size", n_layers="num_hidden_layers", n_heads="num_attention_heads",
            max_seq_len="max_position_embeddings",
        )  # fmt: skip
        fields.expect("no_bias", True)
        fields.expect("norm_type", "low_precision_layernorm", "layernorm")
        fields.expect("logit_scale", None)
        fields.put("intermediate_size", fields.size("hidden_size") * fields.size("expansion_ratio", 4))
        for name in ("learned_pos_emb", "embedding_fraction", "emb_pdrop"):  # of training, or moot beside ALiBi
            fields.raw(name)
        for name in ("init_config", "init_device", "tokenizer_name", "verbose"):
            fields.raw(name)
        attention = Fields(fields.take("attn_config", dict, {}), f"{fields.where}attn_config ")
        attention.expect("alibi", True)
        attention.expect("attn_type", "multihead_attention")
        for name in ("prefix_lm", "qk_ln", "attn_uses_sequence_id"):
            attention.expect(name, False)
        for name in ("attn_impl", "architectures", "model_type"):
            attention.raw(name)
        slopes = slopes_of(fields.size("num_attention_heads"), attention.take("alibi_bias_max", float, 8.0))
        clip, scale = attention.take("clip_qkv", float, None), attention.take("softmax_scale", float, None)
        for name in ("dtype", "torch_dtype"):
            attention.raw(name)
        attention.finish()
        return decoder_config(
            fields,
            architecture,
            tied=True,
            norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
            activation="gelu",
            rope=None,
            alibi=slopes,
            attention_scale=scale,
            clip_qkv=clip or None,
        )
