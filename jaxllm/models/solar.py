"""Solar Pro (Upstage 2024): Llama into some of whose layers' input that of earlier layers is mixed."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxllm.errors import ConfigError
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import Cache, scaled
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class SolarConfig(ModelConfig):
    """skips: per layer, the earlier ones whose input is mixed into its own; share: what each then makes up of it."""

    skips: tuple[tuple[int, ...], ...]
    share: float


class SolarForCausalLM(LlamaForCausalLM):
    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.raw("sliding_window")  # its makers' own programs read it and do without
        shares = fields.take_list("bskcn_tv", float, [0.9, 0.8])  # in training, and from then on
        num_layers = fields.size("num_hidden_layers")
        kept, mixed = ([_read_layers(fields, f"bskcn_{i}", num_layers) for i in pair] for pair in ((1, 2), (3, 4)))
        if len(shares) != 2:
            raise ConfigError(f"{fields.where}bskcn_tv={shares!r} must hold two numbers")
        skips = []
        for layer in range(num_layers):
            sources = [
                max((source for source in earlier if source <= layer), default=None)
                for earlier, into in zip(kept, mixed, strict=True)
                if layer in into
            ]
            if None in sources:
                raise ConfigError(f"{fields.where}bskcn_1 and bskcn_2 name no layer before {layer} to mix into it")
            skips.append(tuple(source for source in sources if source is not None))
        config = super().configure(fields, architecture)
        return SolarConfig(**vars(config), skips=tuple(skips), share=shares[1])

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        assert isinstance(self.config, SolarConfig)
        share = self.config.share
        x = self.embed(step.tokens)
        inputs: list[jax.Array] = []
        new: list[Any] = []
        for i, rotation in enumerate(self.rotations(step.positions)):
            inputs.append(x)
            for source in self.config.skips[i]:
                x = scaled(inputs[source], share) + scaled(x, 1.0 - share)
            layer_cache = None if cache is None else cache[i : i + 1]
            x, layer_cache = self.run_layers(x, layer_cache, step, each=[rotation], layers=[self.layers[i]])
            new += layer_cache or ()
        return self.norm(x), None if cache is None else tuple(new)


def _read_layers(fields: Fields, name: str, num_layers: int) -> list[int]:
    layers = fields.take_list(name, int, [])
    if not all(0 <= layer < num_layers for layer in layers):
        raise ConfigError(f"{fields.where}{name}={layers!r} must hold numbers of layers, from 0 to {num_layers - 1}")
    return layers
