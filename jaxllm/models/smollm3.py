"""SmolLM3 (Hugging Face 2025): Llama with layers, as a rule every fourth, that know no positions."""

from dataclasses import replace

from jaxllm.errors import ConfigError
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM


class SmolLM3ForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        num_layers = fields.size("num_hidden_layers")
        period = fields.size("no_rope_layer_interval", 4)
        turned = fields.take_list(
            "no_rope_layers", int, [int((layer + 1) % period != 0) for layer in range(num_layers)]
        )
        if len(turned) != num_layers or not set(turned) <= {0, 1}:
            raise ConfigError(
                f"{fields.where}no_rope_layers must hold {num_layers} times 1, or 0 for a layer without positions"
            )
        fields.raw("max_window_layers")  # Qwen's; here layer_types or no_rope_layers say which layers have windows
        window = fields.size("sliding_window", None)
        if not fields.take("use_sliding_window", bool, False):
            window = None
        windows = tuple(None if layer else window for layer in turned)
        if fields.values.get("layer_types") is not None:
            windows = read_layer_types(fields, num_layers, window, period=1)
        bias = fields.take("attention_bias", bool, False)
        config = decoder_config(
            fields,
            architecture,
            eos_token_id=128001,
            tied=True,
            rope_theta=2000000.0,
            windows=windows,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=fields.take("mlp_bias", bool, False),
        )
        return replace(config, layer_ropes=tuple(config.rope if layer else None for layer in turned))
