"""Granite with windows and sinks (IBM 2026), dense and with mixtures: gpt-oss's attention, and positions by layer."""

from dataclasses import replace
from typing import ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig, read_layer_types
from jaxllm.models.fields import Fields
from jaxllm.models.gpt_oss import GptOssAttention
from jaxllm.models.granite import GraniteForCausalLM
from jaxllm.models.granitemoe import GraniteMoeForCausalLM

_SINKS = {"layers.*.attention.sinks": Source.of("model.layers.*.self_attn.sinks")}


class GraniteSWAForCausalLM(GraniteForCausalLM):
    attention_class = GptOssAttention
    checkpoint_names: ClassVar[dict[str, Source]] = GraniteForCausalLM.checkpoint_names | _SINKS

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5, tie_word_embeddings=True)
        fields.default_nullable(eos_token_id=100257)
        return _with_windows(fields, super().configure(fields, architecture))


class GraniteMoeSWAForCausalLM(GraniteMoeForCausalLM):
    attention_class = GptOssAttention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        GraniteMoeForCausalLM.checkpoint_names
        | _SINKS
        | {
            "layers.*.mlp.router.kernel": Source.linear("model.layers.*.block_sparse_moe.router.weight"),
            "layers.*.mlp.experts.gate_up": Source.linear("model.layers.*.block_sparse_moe.experts.gate_up_proj"),
            "layers.*.mlp.experts.down": Source.linear("model.layers.*.block_sparse_moe.experts.down_proj"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return _with_windows(fields, super().configure(fields, architecture))


def _with_windows(fields: Fields, config: ModelConfig) -> ModelConfig:
    """With windows on three of four layers, the first not among them, unless the file says; and rotations by layer."""
    window, layers = fields.size("sliding_window", 128), range(config.num_layers)
    windows = tuple(window if layer % 4 else None for layer in layers)
    if fields.values.get("layer_types") is not None:
        windows = read_layer_types(fields, config.num_layers, window, period=0)
    fields.raw("layer_types")
    thetas = fields.take_list("layer_rope_theta", float, None)
    ropes, rope = None, config.rope
    if thetas is not None:
        if len(thetas) != config.num_layers or min(thetas) < 0:
            raise ConfigError(
                f"{fields.where}layer_rope_theta={thetas} must hold {config.num_layers} bases, 0 for a layer without"
                " positions"
            )
        ropes = tuple(replace(rope, theta=theta) if rope and theta else None for theta in thetas)
    return replace(config, windows=windows, layer_ropes=ropes)
