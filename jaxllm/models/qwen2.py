"""Qwen 1.5, 2 and 2.5 (Qwen team 2024): Llama with biases on queries, keys and values, and windows on some layers."""

from jaxllm.models.config import ModelConfig, decoder_config, read_windows
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM


class Qwen2ForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        windows = read_windows(fields, fields.size("num_hidden_layers"))
        return decoder_config(fields, architecture, windows=windows, qkv_bias=True)
