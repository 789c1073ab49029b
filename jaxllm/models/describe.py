"""What a row of the registry stands for: its blocks, what its layers cache, which features it has.

All of it is read off a small abstract model of the family, built from a config.json that has every family's names for
its sizes; nothing is kept by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from jaxllm.core import CacheSpec, CrossKV, LatentKV, PagedKV, RecurrentState, all_specs
from jaxllm.layers.parameter import parameters
from jaxllm.models.causal_lm import CausalLM
from jaxllm.models.config import ModelConfig
from jaxllm.models.encoder import Encoder
from jaxllm.models.encoder_decoder import EncoderDecoder
from jaxllm.models.fields import Fields
from jaxllm.models.pooling import PoolingModel
from jaxllm.models.registry import ENCODER_DECODERS, MODELS, POOLING_MODELS

_SIZES = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "max_seq_len", "n_positions"), 128),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd"), 64),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"), 96),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 6),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 6),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("d_kv", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 8),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "num_experts_per_tok": 2,
    "rotary_dim": 16,
}
_OPTIONS = {
    "use_sliding_window": True,
    "sliding_window": 32,
    "max_window_layers": 2,
    "alibi": True,
    "use_qk_norm": True,
    "attn_layer_indices": [1],
    "full_attn_idxs": [1],
}
_OWN: dict[str, dict[str, Any]] = {
    "GraniteMoeHybridForCausalLM": {"layer_types": ["mamba", "attention"] * 3},
    "Mamba2ForCausalLM": {"head_dim": 32, "n_groups": 2},
    "MellumForCausalLM": {"layer_types": ["sliding_attention", "full_attention"] * 3},
    "NemotronHForCausalLM": {"hybrid_override_pattern": "M*EM*-"},
    "Ministral3ForCausalLM": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        }
    },
}
"""Fields that a family cannot do without and no other has."""


class _SampleFields(Fields):
    """Fields of a config.json of many families, so that some are not what each of them expects."""

    def expect(self, name: str, *allowed: Any) -> None:
        self.raw(name)


@dataclass(frozen=True)
class Description:
    """A row of the registry.

    Attributes:
        family: the module in jaxllm/models.
        task: generate, embed, classify or token_classify.
        blocks: classes of the layers.
        caches: what layers keep of a sequence: pages, windowed pages, latents, states, cross.
        features: what some model of the family has.
    """

    architecture: str
    model_type: str
    family: str
    task: str
    blocks: tuple[str, ...]
    caches: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class _Sample:
    """A model of a family: the paths of its parameters, what its layers cache."""

    model: Any
    paths: tuple[str, ...]
    specs: tuple[CacheSpec, ...]

    @property
    def layers(self) -> list[Any]:
        return [*self.model.layers, *getattr(self.model, "encoder_layers", ())]

    @property
    def config(self) -> ModelConfig:
        config: ModelConfig = self.model.config
        return config

    def any_path(self, part: str) -> bool:
        return any(part in f".{path}" for path in self.paths)


_FEATURES: dict[str, Callable[[_Sample], bool]] = {
    "rope": lambda sample: any(sample.config.layer_ropes or (sample.config.rope,)),
    "alibi": lambda sample: sample.config.alibi is not None,
    "learned positions": lambda sample: sample.any_path("positions."),
    "distance bias": lambda sample: sample.any_path(".bias.embed."),
    "window": lambda sample: any(sample.config.windows),
    "soft cap": lambda sample: sample.config.soft_cap is not None,
    "sinks": lambda sample: sample.any_path(".sinks"),
    "qk norm": lambda sample: sample.config.latent is None and sample.any_path(".q_norm."),
    "parallel": lambda sample: sample.config.parallel_norms > 0,
    "moe": lambda sample: sample.config.mixture is not None,
    "shared experts": lambda sample: sample.any_path(".mlp.shared."),
    "mla": lambda sample: sample.config.latent is not None,
    "state": lambda sample: any(isinstance(spec, RecurrentState) for spec in sample.specs),
    "encoder": lambda sample: isinstance(sample.model, Encoder | EncoderDecoder),
}

_CACHES: dict[str, Callable[[CacheSpec], bool]] = {
    "pages": lambda spec: isinstance(spec, PagedKV) and spec.window is None,
    "windowed pages": lambda spec: isinstance(spec, PagedKV) and spec.window is not None,
    "latents": lambda spec: isinstance(spec, LatentKV),
    "states": lambda spec: isinstance(spec, RecurrentState),
    "cross": lambda spec: isinstance(spec, CrossKV),
}


def describe_all() -> list[Description]:
    """Every row of the registry, by architecture."""
    rows: dict[str, tuple[str, type]] = {**MODELS, **ENCODER_DECODERS, **POOLING_MODELS}
    known: dict[type, Description] = {}
    for name, (model_type, model_class) in rows.items():
        if model_class not in known:  # several names may stand for one class
            known[model_class] = _describe(name, model_type, model_class)
    return [
        replace(known[model_class], architecture=name, model_type=model_type)
        for name, (model_type, model_class) in sorted(rows.items())
    ]


def _describe(architecture: str, model_type: str, model_class: Any) -> Description:
    samples = _samples(architecture, model_class)
    pooling = samples[0].config.pooling
    specs = [spec for sample in samples for spec in sample.specs]
    # A decoder that embeds or classifies is of the family of its generating parent.
    parents = (base for base in model_class.__mro__ if issubclass(base, CausalLM))
    home = next((base for base in parents if not issubclass(base, PoolingModel)), model_class)
    return Description(
        architecture=architecture,
        model_type=model_type,
        family=home.__module__.rpartition(".")[2],
        task="generate" if pooling is None else pooling.task,
        blocks=tuple(sorted({type(layer).__name__ for sample in samples for layer in sample.layers})),
        caches=tuple(kind for kind, fits in _CACHES.items() if any(map(fits, specs))),
        features=tuple(feature for feature, has in _FEATURES.items() if any(map(has, samples))),
    )


def _samples(architecture: str, model_class: Any) -> list[_Sample]:
    """A model as the family has it by default, and one with what it may have besides, if that makes a difference."""
    sizes = _SIZES | _OWN.get(architecture, {})
    plain, optional = (model_class.configure(_SampleFields(sizes | more), architecture) for more in ({}, _OPTIONS))
    samples = []
    for config in (plain, optional) if optional != plain else (plain,):
        model = model_class(config, jnp.float32)
        specs = all_specs(model.cache_specs()) if config.pooling is None else ()
        samples.append(_Sample(model, tuple(parameters(model)), specs))
    return samples
