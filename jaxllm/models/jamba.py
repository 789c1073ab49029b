"""Jamba (AI21 2024): Mamba with attention in one layer of several, and mixtures of experts; no positions anywhere."""

from dataclasses import replace
from typing import ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Source
from jaxllm.layers.ssm import Mamba
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.hybrid import HybridForCausalLM
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mamba import TRAINING, mamba_names, read_activation, read_rank

_LAYER = "model.layers.*"


class JambaForCausalLM(HybridForCausalLM):
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        **mamba_names("layers.*.mamba", f"{_LAYER}.mamba"),
        "layers.*.mlp_norm.weight": Source.of(f"{_LAYER}.pre_ff_layernorm.weight"),
        "layers.*.mlp.gate_up.kernel": Source.linear(
            f"{_LAYER}.feed_forward.gate_proj.weight", f"{_LAYER}.feed_forward.up_proj.weight"
        ),
        "layers.*.mlp.down.kernel": Source.linear(f"{_LAYER}.feed_forward.down_proj.weight"),
        "layers.*.mlp.router.kernel": Source.linear(f"{_LAYER}.feed_forward.router.weight"),
        "layers.*.mlp.experts.gate_up": Source.linear(
            f"{_LAYER}.feed_forward.experts.*.gate_proj.weight", f"{_LAYER}.feed_forward.experts.*.up_proj.weight"
        ),
        "layers.*.mlp.experts.down": Source.linear(f"{_LAYER}.feed_forward.experts.*.down_proj.weight"),
        "norm.weight": Source.of("model.final_layernorm.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        size, num_experts = fields.size("hidden_size"), fields.size("num_experts", 16)
        fields.expect("num_local_experts", num_experts)
        mixture = Mixture(
            sparse=_every(fields, "expert_layer", 2, 1),
            num_experts=num_experts,
            inner_size=fields.size("intermediate_size"),
            routing=SoftmaxTopK(fields.size("num_experts_per_tok", 2), norm=None),
        )
        sizes = Mamba(
            inner_size=fields.size("mamba_expand", 2) * size,
            state_size=fields.size("mamba_d_state", 16),
            conv_size=fields.size("mamba_d_conv", 4),
            rank=read_rank(fields, "mamba_dt_rank", size),
            bias=fields.take("mamba_proj_bias", bool, False),
            conv_bias=fields.take("mamba_conv_bias", bool, True),
            norm_class=RMSNorm,
            norm_eps=fields.take("rms_norm_eps", float, 1e-6),
        )
        fields.expect("mamba_inner_layernorms", True)
        fields.expect("sliding_window", None)
        fields.ignore("calc_logits_for_entire_prompt", *TRAINING)
        read_activation(fields)
        config = decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            mixture=mixture if num_experts > 1 else None,
            state_space=sizes,
            recurrent=tuple(not attends for attends in _every(fields, "attn_layer", 8, 4)),
        )
        return replace(config, rope=None)


def _every(fields: Fields, name: str, period: int, offset: int) -> tuple[bool, ...]:
    """Per layer, whether it is the one of its period. period, offset: where the file does not say."""
    period, offset = fields.size(f"{name}_period", period), fields.take(f"{name}_offset", int, offset)
    if not 0 <= offset < period:
        raise ConfigError(f"{fields.where}{name}_offset={offset} must be within {name}_period={period}")
    return tuple(layer % period == offset for layer in range(fields.size("num_hidden_layers")))
