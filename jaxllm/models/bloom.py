"""BLOOM (BigScience 2022): ALiBi, LayerNorm, biases, a norm upon the embedding; queries, keys and values fused head by
head."""

from typing import ClassVar

import jax

from jaxllm.layers.attention import slopes_of
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import Cache
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.gpt_neox import HeadwiseAttention
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.starcoder2 import Starcoder2Block


class BloomForCausalLM(LlamaForCausalLM):
    block_class = Starcoder2Block
    attention_class = HeadwiseAttention
    mlp_class = MLP
    checkpoint_prefix = "transformer."
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.word_embeddings.weight"),
        **norm_rows("embed_norm", "transformer.word_embeddings_layernorm"),
        **norm_rows("layers.*.attention_norm", "transformer.h.*.input_layernorm"),
        **linear_rows("layers.*.attention.qkv", "transformer.h.*.self_attention.query_key_value"),
        **linear_rows("layers.*.attention.out", "transformer.h.*.self_attention.dense"),
        **norm_rows("layers.*.mlp_norm", "transformer.h.*.post_attention_layernorm"),
        **linear_rows("layers.*.mlp.up", "transformer.h.*.mlp.dense_h_to_4h"),
        **linear_rows("layers.*.mlp.down", "transformer.h.*.mlp.dense_4h_to_h"),
        **norm_rows("norm", "transformer.ln_f"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(
            n_embed="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads",
            seq_length="max_position_embeddings",
        )  # fmt: skip
        fields.expect("apply_residual_connection_post_layernorm", False)
        for name in ("slow_but_exact", "attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion"):
            fields.raw(name)  # how to compute, not what
        for name in ("offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "unk_token_id"):  # read by no program
            fields.raw(name)
        fields.put("intermediate_size", 4 * fields.size("hidden_size"))
        fields.expect("n_inner", None, 4 * fields.size("hidden_size"))
        fields.default(max_position_embeddings=2048)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            tied=True,
            norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
            activation="gelu_new",
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            rope=None,
            alibi=slopes_of(fields.size("num_attention_heads")),
        )

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        self.embed_norm = LayerNorm(config.hidden_size, config.norm_eps, dtype)

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        x, cache = self.run_layers(self.embed_norm(self.embed(step.tokens)), cache, None, step)
        return self.norm(x), cache
