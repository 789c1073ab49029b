"""InternLM2 and 2.5 (Cai et al. 2024): Llama whose checkpoints fuse queries, keys and values group by group."""

from typing import ClassVar

from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.gpt_neox import HeadwiseAttention
from jaxllm.models.llama import LlamaForCausalLM


class InternLM2ForCausalLM(LlamaForCausalLM):
    attention_class = HeadwiseAttention
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.tok_embeddings.weight"),
        **norm_rows("layers.*.attention_norm", "model.layers.*.attention_norm"),
        **linear_rows("layers.*.attention.qkv", "model.layers.*.attention.wqkv"),
        **linear_rows("layers.*.attention.out", "model.layers.*.attention.wo"),
        **norm_rows("layers.*.mlp_norm", "model.layers.*.ffn_norm"),
        **linear_rows("layers.*.mlp.gate_up", "model.layers.*.feed_forward.w1", "model.layers.*.feed_forward.w3"),
        **linear_rows("layers.*.mlp.down", "model.layers.*.feed_forward.w2"),
        **norm_rows("norm", "model.norm"),
        "head.kernel": Source.linear("output.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.raw("attn_implementation")
        bias = fields.take("bias", bool, True)
        return decoder_config(fields, architecture, eos_token_id=2, qkv_bias=bias, out_bias=bias)
