"""Command R (Cohere 2024) and Command R7B, A (2025): attention and MLP read one LayerNorm without bias, logits scaled.

Positions turn neighbouring pairs. In the second generation only layers with a window know positions.
"""

from dataclasses import replace
from typing import Any, ClassVar

from jaxllm.layers.norm import BiaslessLayerNorm
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, without_global_rope
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.parallel import ParallelBlock
from jaxllm.models.stablelm import StableLmAttention


class CohereBlock(ParallelBlock):
    norm_class = BiaslessLayerNorm


class CohereForCausalLM(LlamaForCausalLM):
    block_class = CohereBlock
    attention_class = StableLmAttention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention.q_norm.weights": Source.of("model.layers.*.self_attn.q_norm.weight"),
        "layers.*.attention.k_norm.weights": Source.of("model.layers.*.self_attn.k_norm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        qk_norm = fields.take("use_qk_norm", bool, False)
        return _cohere_config(fields, architecture, qk_norm=qk_norm, rope_theta=500000.0)


class Cohere2ForCausalLM(CohereForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default_nullable(sliding_window=4096)
        window = fields.size("sliding_window", None)
        period = fields.size("layer_switch", 4)  # as the makers' own program calls it, like the fields below
        period = fields.size("_sliding_window_pattern", period)
        period = fields.size("sliding_window_pattern", period)
        windows = read_layer_types(fields, fields.size("num_hidden_layers"), window, period)
        fields.raw("cache_implementation")
        fields.expect("order_of_interleaved_layers", "local_attn_first", None)
        fields.expect("position_embedding_type", "rope_gptj", None)
        fields.expect("rotary_pct", 1, None)
        fields.expect("use_qk_norm", False, None)
        for part in ("parallel_block", "parallel_embedding", "gated_activation", "embedding_sharing"):
            fields.expect(f"use_{part}", True, None)
        return without_global_rope(_cohere_config(fields, architecture, windows=windows))


def _cohere_config(fields: Fields, architecture: str, **family: Any) -> ModelConfig:
    bias = fields.take("attention_bias", bool, False)
    config = decoder_config(
        fields,
        architecture,
        eos_token_id=255001,
        tied=True,
        interleaved=True,
        parallel_norms=1,
        norm_eps=fields.take("layer_norm_eps", float, 1e-5),
        logit_scale=fields.take("logit_scale", float, 0.0625),
        qkv_bias=bias,
        out_bias=bias,
        **family,
    )
    # The makers' own files say here what their models are made for, and less in max_position_embeddings.
    positions = fields.size("model_max_length", config.max_position_embeddings)
    return replace(config, max_position_embeddings=positions)
