"""Mistral 7B and its kin (Jiang et al. 2023): Llama whose layers may see a window of positions only."""

from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default_nullable(sliding_window=4096)
        window = fields.size("sliding_window", None)
        windows = (window,) * fields.size("num_hidden_layers")
        return decoder_config(fields, architecture, eos_token_id=2, windows=windows)


class MinistralForCausalLM(MistralForCausalLM):
    """Ministral 8B: windows on some of the layers."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default_nullable(sliding_window=4096)
        window = fields.size("sliding_window", None)
        windows = read_layer_types(fields, fields.size("num_hidden_layers"), window, period=0)
        return decoder_config(fields, architecture, eos_token_id=2, windows=windows)


class CwmForCausalLM(LlamaForCausalLM):
    """Code World Model (Meta 2025): Llama 3 with windows on three of four layers, the first not among them."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        fields.default_rope(
            "llama3", factor=16.0, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0
        )
        window, num_layers = fields.size("sliding_window", 8192), fields.size("num_hidden_layers")
        windows = tuple(window if layer % 4 else None for layer in range(num_layers))
        if fields.values.get("layer_types") is not None:
            windows = read_layer_types(fields, num_layers, window, period=0)
        for name in ("attention_bias", "mlp_bias"):
            fields.expect(name, False, None)
        eos = [128001, 128008, 128009]
        return decoder_config(
            fields, architecture, head_dim=128, eos_token_id=eos, rope_theta=1000000.0, windows=windows
        )
