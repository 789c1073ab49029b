"""Mistral 7B and its kin (Jiang et al. 2023): Llama whose layers may see a window of positions only."""

from jaxllm.models.config import Fields, ModelConfig, decoder_config
from jaxllm.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        window = fields.size("sliding_window", None) if "sliding_window" in fields.values else 4096
        windows = (window,) * fields.size("num_hidden_layers")
        return decoder_config(fields, architecture, eos_token_id=2, windows=windows)
