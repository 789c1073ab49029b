"""OPT and Galactica (Zhang et al. 2022): learned positions, LayerNorm, biases; one size normalises after its layers and
embeds into fewer numbers than it computes with."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx

from jaxllm.layers.cache import PagedCache
from jaxllm.layers.embed import Embed
from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import MLP, GatedMLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import Cache, CausalLM
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaBlock

OFFSET = 2
"""The row of the position table that the first token takes."""


@dataclass(frozen=True, kw_only=True)
class OPTConfig(ModelConfig):
    """norm_first: norms stand before attention and MLP, not behind their sums. final_norm: and one behind the layers.
    embed_size: numbers of an embedding and of what the head reads."""

    norm_first: bool
    final_norm: bool
    embed_size: int

    @property
    def output_size(self) -> int:
        return self.embed_size


class OPTBlock(LlamaBlock):
    norm_class = LayerNorm

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: Dtype,
        attention_class: type[LlamaAttention],
        mlp_class: type[GatedMLP] | type[MLP],
    ):
        super().__init__(config, layer, dtype, attention_class, mlp_class)
        assert isinstance(config, OPTConfig)
        self.norm_first = config.norm_first

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        if self.norm_first:
            return super().__call__(x, rotation, step, cache)
        mixed, cache = self.attention(x, rotation, step, cache)
        x = self.attention_norm(x + mixed)
        return self.mlp_norm(x + self.mlp(x)), cache


class OPTForCausalLM(CausalLM):
    """The whole model. Its classes are attributes, so that a subclass swaps one."""

    block_class: ClassVar[type[LlamaBlock]] = OPTBlock
    attention_class: ClassVar[type[LlamaAttention]] = LlamaAttention
    mlp_class: ClassVar[type[MLP]] = MLP

    checkpoint_prefix = "model."
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.decoder.embed_tokens.weight"),
        "positions.table": Source.of("model.decoder.embed_positions.weight"),
        "project_in.kernel": Source.linear("model.decoder.project_in.weight"),
        **norm_rows("layers.*.attention_norm", "model.decoder.layers.*.self_attn_layer_norm"),
        **linear_rows(
            "layers.*.attention.qkv",
            "model.decoder.layers.*.self_attn.q_proj",
            "model.decoder.layers.*.self_attn.k_proj",
            "model.decoder.layers.*.self_attn.v_proj",
        ),
        **linear_rows("layers.*.attention.out", "model.decoder.layers.*.self_attn.out_proj"),
        **norm_rows("layers.*.mlp_norm", "model.decoder.layers.*.final_layer_norm"),
        **linear_rows("layers.*.mlp.up", "model.decoder.layers.*.fc1"),
        **linear_rows("layers.*.mlp.down", "model.decoder.layers.*.fc2"),
        **norm_rows("norm", "model.decoder.final_layer_norm"),
        "project_out.kernel": Source.linear("model.decoder.project_out.weight"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(ffn_dim="intermediate_size", init_std="initializer_range", activation_function="hidden_act")
        for name in ("layer_norm_elementwise_affine", "learned_embeddings"):
            fields.expect(name, True)
        fields.expect("scale_embeddings", False)
        bias = fields.take("enable_bias", bool, True)
        norm_first = fields.take("do_layer_norm_before", bool, True)
        removed = fields.take("_remove_final_layer_norm", bool, False)
        shared = decoder_config(
            fields,
            architecture,
            eos_token_id=2,
            tied=True,
            norm_eps=1e-5,
            activation=fields.take("hidden_act", str, "relu"),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bias,
            rope=None,
        )
        return OPTConfig(
            **vars(shared),
            norm_first=norm_first,
            final_norm=norm_first and not removed,
            embed_size=fields.size("word_embed_proj_dim", shared.hidden_size),
        )

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        assert isinstance(config, OPTConfig)
        size, inner, std = config.hidden_size, config.embed_size, config.initializer_range
        if inner == size:
            self.project_in = self.project_out = None
        else:
            self.embed = Embed(config.vocab_size, inner, dtype, std=std)
            self.project_in = Linear(inner, size, dtype, axes=("embed", "embed"), std=std)
            self.project_out = Linear(size, inner, dtype, axes=("embed", "embed"), std=std)
            if self.head is not None:
                self.head = Linear(inner, config.vocab_size, dtype, axes=("embed", "vocab"), std=std)
        self.positions = Embed(config.max_position_embeddings + OFFSET, size, dtype, axis="position", std=std)
        self.layers = nnx.List(
            self.block_class(config, layer, dtype, self.attention_class, self.mlp_class)
            for layer in range(config.num_layers)
        )
        self.norm = LayerNorm(size, config.norm_eps, dtype) if config.final_norm else None

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        x = self.embed(step.tokens)
        if self.project_in is not None:
            x = self.project_in(x)
        x, cache = self.run_layers(x + self.positions(step.positions + OFFSET), cache, None, step)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.project_out is None else self.project_out(x), cache
