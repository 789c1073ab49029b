"""T5 (Raffel et al. 2020), 1.1, Flan and mT5: attention scores gain a learned bias by distance and are not scaled.

Distances fall into buckets: exact when small, then wider and wider, and all beyond max_distance into one. So a stack's
bias is a table by distance, which ends there. T5 1.0 has ungated rectifiers and its embedding for a head, whose input
is scaled; 1.1 has gated GELUs and a head of its own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllm.errors import ConfigError
from jaxllm.layers.cross_attention import Encoded
from jaxllm.layers.embed import Embed
from jaxllm.layers.norm import RMSNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.layers.step import DenseStep, EncodeStep, Step
from jaxllm.models.causal_lm import Cache
from jaxllm.models.config import ModelConfig, common
from jaxllm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jaxllm.models.fields import Fields


@dataclass(frozen=True, kw_only=True)
class T5Config(EncoderDecoderConfig):
    """num_buckets: of distances, in each stack. max_distance: from which on all are in one bucket."""

    num_buckets: int
    max_distance: int


class DistanceBias(nnx.Module):
    """A number for each bucket and head."""

    def __init__(self, config: T5Config, dtype: Dtype, *, to_both_sides: bool):
        self.buckets = buckets_of(config.num_buckets, config.max_distance, to_both_sides=to_both_sides)
        self.embed = Embed(config.num_buckets, config.num_heads, dtype, axis="bucket", std=config.initializer_range)

    def __call__(self) -> jax.Array:
        """[H, 2 * W + 1] float32 by the key's distance from the query, -W to W; [H, W + 1] by how far it is behind."""
        return self.embed(jnp.asarray(self.buckets, jnp.int32)).astype(jnp.float32).T


def buckets_of(num_buckets: int, max_distance: int, *, to_both_sides: bool) -> tuple[int, ...]:
    """The bucket of each distance from -max_distance to max_distance, or from 0 to max_distance behind.

    The first half of a side's buckets are for one distance each, the others for as many times as many each. Computed
    in float32, as those who trained with them did.
    """
    side = num_buckets // 2 if to_both_sides else num_buckets
    exact = side // 2
    behind = np.arange(max_distance + 1)
    scale = np.float32(np.log(max_distance / exact))
    far = np.log(np.maximum(behind, 1).astype(np.float32) / np.float32(exact)) / scale * np.float32(side - exact)
    bucket = np.where(behind < exact, behind, np.minimum(exact + far.astype(np.int32), side - 1))
    if to_both_sides:
        bucket = np.concatenate([bucket[:0:-1], bucket[:1], bucket[1:] + side])
    return tuple(bucket.tolist())


def _stack_names(ours: str, theirs: str, mlp: int) -> dict[str, Source]:
    """The rows of a stack's layers; mlp: its place among a layer's parts."""
    block = f"{theirs}.block.*.layer"
    return {
        **norm_rows(f"{ours}layers.*.attention_norm", f"{block}.0.layer_norm"),
        **linear_rows(f"{ours}layers.*.attention.qkv", *(f"{block}.0.SelfAttention.{part}" for part in "qkv")),
        **linear_rows(f"{ours}layers.*.attention.out", f"{block}.0.SelfAttention.o"),
        **norm_rows(f"{ours}layers.*.mlp_norm", f"{block}.{mlp}.layer_norm"),
        **linear_rows(f"{ours}layers.*.mlp.up", f"{block}.{mlp}.DenseReluDense.wi"),
        **linear_rows(
            f"{ours}layers.*.mlp.gate_up", f"{block}.{mlp}.DenseReluDense.wi_0", f"{block}.{mlp}.DenseReluDense.wi_1"
        ),
        **linear_rows(f"{ours}layers.*.mlp.down", f"{block}.{mlp}.DenseReluDense.wo"),
        **norm_rows(f"{ours}norm", f"{theirs}.final_layer_norm"),
        f"{ours}bias.embed.table": Source.of(f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    }


class T5ForConditionalGeneration(EncoderDecoder):
    norm_class = RMSNorm
    config: T5Config
    checkpoint_ignored = (r"^(en|de)coder\.embed_tokens\.weight$", r"EncDecAttention\.relative_attention_bias\.weight$")
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("shared.weight"),
        **_stack_names("encoder_", "encoder", mlp=1),
        **_stack_names("", "decoder", mlp=2),
        **norm_rows("layers.*.cross_norm", "decoder.block.*.layer.1.layer_norm"),
        **linear_rows("layers.*.cross.q", "decoder.block.*.layer.1.EncDecAttention.q"),
        **linear_rows(
            "layers.*.cross.kv",
            "decoder.block.*.layer.1.EncDecAttention.k",
            "decoder.block.*.layer.1.EncDecAttention.v",
        ),
        **linear_rows("layers.*.cross.out", "decoder.block.*.layer.1.EncDecAttention.o"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        for name in ("dropout_rate", "initializer_factor", "output_past"):  # of training
            fields.raw(name)
        fields.expect("is_encoder_decoder", True, None)
        gated, activation = _read_mlp(fields)
        size, num_heads, layers = fields.size("d_model"), fields.size("num_heads"), fields.size("num_layers")
        tied = fields.take("tie_word_embeddings", bool, True)
        # Transformers 5 writes that the head is tied in any case, and that its input is scaled where it really is.
        tied = fields.take("scale_decoder_outputs", bool, tied)
        shared: dict[str, Any] = {
            "architecture": architecture,
            "vocab_size": fields.size("vocab_size"),
            "hidden_size": size,
            "intermediate_size": fields.size("d_ff"),
            "num_heads": num_heads,
            "num_kv_heads": num_heads,
            "head_dim": fields.size("d_kv"),
            "max_position_embeddings": fields.size("n_positions", 512),
            "norm_eps": fields.take("layer_norm_epsilon", float, 1e-6),
            "activation": activation,
            "tie_word_embeddings": tied,
            "qkv_bias": False,
            "out_bias": False,
            "mlp_bias": False,
            "rope": None,
            "attention_scale": 1.0,
            "logit_scale": size**-0.5 if tied else 1.0,
            **common(fields, eos_token_id=1),
        }
        decoder_layers = fields.size("num_decoder_layers", layers)
        return T5Config(
            **shared,
            num_layers=decoder_layers,
            windows=(None,) * decoder_layers,
            encoder=ModelConfig(**shared, num_layers=layers, windows=(None,) * layers),
            norm_first=True,
            gated=gated,
            decoder_start_token_id=fields.take("decoder_start_token_id", int, fields.take("pad_token_id", int, 0)),
            forced_bos_token_id=fields.take("forced_bos_token_id", int, None),
            num_buckets=fields.size("relative_attention_num_buckets", 32),
            max_distance=fields.size("relative_attention_max_distance", 128),
        )

    def __init__(self, config: T5Config, dtype: Dtype):
        super().__init__(config, dtype)
        self.encoder_norm = RMSNorm(config.hidden_size, config.norm_eps, dtype)
        self.encoder_bias = DistanceBias(config, dtype, to_both_sides=True)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, dtype)
        self.bias = DistanceBias(config, dtype, to_both_sides=False)

    def encode(self, step: EncodeStep) -> Encoded:
        x, _ = self.run_layers(
            self.embed(step.tokens), None, self.encoder_bias(), step, None, layers=self.encoder_layers
        )  # fmt: skip
        return Encoded(self.encoder_norm(x), step.query_start)

    def __call__(
        self, step: Step | DenseStep, cache: Cache | None, sources: EncodeStep | None = None
    ) -> tuple[jax.Array, Cache | None]:
        encoded = None if sources is None else self.encode(sources)
        x, cache = self.run_layers(self.embed(step.tokens), cache, self.bias(), step, encoded)
        return self.norm(x), cache


class MT5ForConditionalGeneration(T5ForConditionalGeneration):
    """T5 1.1 over many languages. Its head is its own, whatever transformers 5 writes of it."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.put("scale_decoder_outputs", False)
        fields.default(feed_forward_proj="gated-gelu")
        return super().configure(fields, architecture)


def _read_mlp(fields: Fields) -> tuple[bool, str]:
    """Whether MLPs are gated, and by what: feed_forward_proj is relu, gated-gelu and the like."""
    kind = fields.take("feed_forward_proj", str, "relu")
    gate, _, activation = kind.rpartition("-")
    if gate not in ("", "gated"):
        raise ConfigError(f"{fields.where}feed_forward_proj={kind!r} must be an activation, or gated- before one")
    activation = "gelu_new" if kind == "gated-gelu" else activation
    return fields.take("is_gated_act", bool, gate == "gated"), fields.take("dense_act_fn", str, activation)
