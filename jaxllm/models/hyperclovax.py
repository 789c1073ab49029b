"""HyperCLOVA X SEED (NAVER 2025): Granite's factors, but logits are multiplied, and norms of what a block adds."""

from typing import ClassVar

from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.gemma import SandwichBlock
from jaxllm.models.llama import LlamaForCausalLM


class HyperCLOVAXForCausalLM(LlamaForCausalLM):
    block_class = SandwichBlock
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention_out_norm.weight": Source.of("model.layers.*.post_norm1.weight"),
        "layers.*.mlp_out_norm.weight": Source.of("model.layers.*.post_norm2.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("use_post_norm", True)
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, False),
            embed_scale=fields.take("embedding_multiplier", float, 1.0),
            attention_scale=fields.take("attention_multiplier", float, None),
            residual_scale=fields.take("residual_multiplier", float, 1.0),
            logit_scale=fields.take("logits_scaling", float, 1.0),
        )
