"""ExaOne 3 (LG AI Research 2024), a Llama in GPT-2's words, and ExaOne 4 (2025).

The latter normalises what a block adds, and queries and keys head by head; where it mixes windows with full layers,
only the former know positions.
"""

from typing import ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, without_global_rope
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.olmo import Olmo2ForCausalLM, PostNormBlock
from jaxllm.models.qwen3 import Qwen3Attention


class ExaoneForCausalLM(LlamaForCausalLM):
    checkpoint_prefix = "transformer."
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.wte.weight"),
        **norm_rows("layers.*.attention_norm", "transformer.h.*.ln_1"),
        **linear_rows(
            "layers.*.attention.qkv",
            "transformer.h.*.attn.attention.q_proj",
            "transformer.h.*.attn.attention.k_proj",
            "transformer.h.*.attn.attention.v_proj",
        ),
        **linear_rows("layers.*.attention.out", "transformer.h.*.attn.attention.out_proj"),
        **norm_rows("layers.*.mlp_norm", "transformer.h.*.ln_2"),
        **linear_rows("layers.*.mlp.gate_up", "transformer.h.*.mlp.c_fc_0", "transformer.h.*.mlp.c_fc_1"),
        **linear_rows("layers.*.mlp.down", "transformer.h.*.mlp.c_proj"),
        **norm_rows("norm", "transformer.ln_f"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(
            num_layers="num_hidden_layers", activation_function="hidden_act", layer_norm_epsilon="rms_norm_eps"
        )
        return decoder_config(fields, architecture, eos_token_id=361, rope_theta=500000.0)


class Exaone4ForCausalLM(LlamaForCausalLM):
    block_class = PostNormBlock
    attention_class = Qwen3Attention
    checkpoint_names: ClassVar[dict[str, Source]] = Olmo2ForCausalLM.checkpoint_names

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        fields.default_nullable(sliding_window=4096)
        window = fields.size("sliding_window", None)
        period = read_period(fields)
        windows = read_layer_types(fields, fields.size("num_hidden_layers"), window, period)
        config = decoder_config(fields, architecture, eos_token_id=2, windows=windows)
        return config if window is None else without_global_rope(config)


def read_period(fields: Fields) -> int:
    """Layers from one that sees all to the next; 4 may be written LLLG."""
    pattern = fields.raw("sliding_window_pattern", 4)
    if isinstance(pattern, str) and pattern == "L" * (len(pattern) - 1) + "G":
        return len(pattern)
    if pattern is None or (type(pattern) is int and pattern >= 0):
        return pattern or 0
    raise ConfigError(f"{fields.where}sliding_window_pattern={pattern!r} must be a number of layers, or like LLLG")
