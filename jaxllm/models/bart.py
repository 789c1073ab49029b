"""BART (Lewis et al. 2019) and its kin: mBART (Liu et al. 2020), Pegasus (Zhang et al. 2019), Marian (Junczys-Dowmunt
et al. 2018). Encoder and decoder share an embedding, which is the head too, and have positions of their own.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.layers.cross_attention import Encoded
from jaxllm.layers.embed import Embed
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Constant, Dtype, Layout, Parameter, Source, broadcast, linear_rows, norm_rows
from jaxllm.layers.step import DenseStep, EncodeStep, Step
from jaxllm.models.causal_lm import Cache, scaled
from jaxllm.models.config import ModelConfig, common
from jaxllm.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jaxllm.models.fields import Fields

OFFSET = 2
"""The row of a learned table of positions that the first token takes."""


@dataclass(frozen=True, kw_only=True)
class BartConfig(EncoderDecoderConfig):
    """learned_positions: else they are sines and cosines. embed_norm: what a stack's layers read is normalised.
    final_norm: and so is what they make."""

    learned_positions: bool
    embed_norm: bool
    final_norm: bool


class Ends(nnx.Module):
    """What stands before and behind the layers of encoder or decoder: positions, learned or sines and then cosines
    (Vaswani et al. 2017), and norms."""

    def __init__(self, config: BartConfig, dtype: Dtype):
        rows, size = config.max_position_embeddings + OFFSET, config.hidden_size
        table = Embed(rows, size, dtype, axis="position", std=config.initializer_range)
        self.size = size
        self.positions = table if config.learned_positions else None
        self.embed_norm = LayerNorm(size, config.norm_eps, dtype) if config.embed_norm else None
        self.norm = LayerNorm(size, config.norm_eps, dtype) if config.final_norm else None

    def enter(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Embeddings x [T, E] and positions [T] int32 -> [T, E], what the layers read."""
        x = x + self.place(positions).astype(x.dtype)
        return x if self.embed_norm is None else self.embed_norm(x)

    def leave(self, x: jax.Array) -> jax.Array:
        """x [T, E] behind the layers -> [T, E]."""
        return x if self.norm is None else self.norm(x)

    def place(self, positions: jax.Array) -> jax.Array:
        """positions [T] int32 -> [T, E], what they add to embeddings."""
        if self.positions is not None:
            return self.positions(positions + OFFSET)
        frequencies = jnp.exp(jnp.arange(0, self.size, 2, dtype=jnp.float32) * (-math.log(10000.0) / self.size))
        angles = positions.astype(jnp.float32)[:, None] * frequencies[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _stack_names(ours: str, theirs: str) -> dict[str, Source]:
    layer = f"{theirs}.layers.*"
    return {
        f"{ours}ends.positions.table": Source.of(f"{theirs}.embed_positions.weight"),
        **norm_rows(f"{ours}ends.embed_norm", f"{theirs}.layernorm_embedding"),
        **norm_rows(f"{ours}layers.*.attention_norm", f"{layer}.self_attn_layer_norm"),
        **linear_rows(f"{ours}layers.*.attention.qkv", *(f"{layer}.self_attn.{part}_proj" for part in "qkv")),
        **linear_rows(f"{ours}layers.*.attention.out", f"{layer}.self_attn.out_proj"),
        **norm_rows(f"{ours}layers.*.mlp_norm", f"{layer}.final_layer_norm"),
        **linear_rows(f"{ours}layers.*.mlp.up", f"{layer}.fc1"),
        **linear_rows(f"{ours}layers.*.mlp.down", f"{layer}.fc2"),
        **norm_rows(f"{ours}ends.norm", f"{theirs}.layer_norm"),
    }


_ONE_ROW = Layout(lambda shape: (1, *shape), lambda tensor, shape: tensor.reshape(shape))


class BartForConditionalGeneration(EncoderDecoder):
    config: BartConfig
    checkpoint_prefix = "model."
    checkpoint_optional = frozenset({"logits_bias"})  # not in those saved without their head
    checkpoint_ignored: ClassVar[tuple[str, ...]] = (r"^(model\.)?(en|de)coder\.embed_tokens\.weight$",)
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.shared.weight"),
        "logits_bias": Source(("final_logits_bias",), _ONE_ROW),
        **_stack_names("encoder_", "model.encoder"),
        **_stack_names("", "model.decoder"),
        **norm_rows("layers.*.cross_norm", "model.decoder.layers.*.encoder_attn_layer_norm"),
        **linear_rows("layers.*.cross.q", "model.decoder.layers.*.encoder_attn.q_proj"),
        **linear_rows(
            "layers.*.cross.kv",
            "model.decoder.layers.*.encoder_attn.k_proj",
            "model.decoder.layers.*.encoder_attn.v_proj",
        ),
        **linear_rows("layers.*.cross.out", "model.decoder.layers.*.encoder_attn.out_proj"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return bart_config(fields, architecture, decoder_start_token_id=2)

    def __init__(self, config: BartConfig, dtype: Dtype):
        super().__init__(config, dtype)
        self.encoder_ends, self.ends = Ends(config, dtype), Ends(config, dtype)
        self.logits_bias = Parameter((config.vocab_size,), dtype, axes=("vocab",), init=Constant(0.0))

    def encode(self, step: EncodeStep) -> Encoded:
        x = self.encoder_ends.enter(self.look_up(step.tokens), step.positions)
        x, _ = self.run_layers(x, None, None, step, None, layers=self.encoder_layers)
        return Encoded(self.encoder_ends.leave(x), step.query_start)

    def __call__(
        self, step: Step | DenseStep, cache: Cache | None, sources: EncodeStep | None = None
    ) -> tuple[jax.Array, Cache | None]:
        encoded = None if sources is None else self.encode(sources)
        x = self.ends.enter(self.look_up(step.tokens), step.positions)
        x, cache = self.run_layers(x, cache, None, step, encoded)
        return self.ends.leave(x), cache

    def look_up(self, tokens: jax.Array) -> jax.Array:
        """tokens [T] int32 -> [T, E]."""
        return scaled(self.embed(tokens), self.config.embed_scale)

    def logits(self, hidden: jax.Array) -> jax.Array:
        logits = super().logits(hidden)
        return logits + broadcast(self.logits_bias[...].astype(jnp.float32), logits)


class MBartForConditionalGeneration(BartForConditionalGeneration):
    """Norms before attention and MLP, and one behind the layers."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return bart_config(fields, architecture, norm_first=True, final_norm=True)


class PegasusForConditionalGeneration(BartForConditionalGeneration):
    """mBART with sines and cosines for positions, and embeddings as they are."""

    checkpoint_ignored: ClassVar[tuple[str, ...]] = (
        *BartForConditionalGeneration.checkpoint_ignored,
        r"embed_positions\.weight$",
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return bart_config(
            fields, architecture, norm_first=True, final_norm=True, embed_norm=False, learned_positions=False,
            decoder_start_token_id=0, eos_token_id=1,
        )  # fmt: skip


class MarianMTModel(PegasusForConditionalGeneration):
    """BART with sines and cosines for positions, and embeddings as they are."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("share_encoder_decoder_embeddings", True, None)
        fields.expect("decoder_vocab_size", fields.size("vocab_size"), None)
        return bart_config(
            fields, architecture, embed_norm=False, learned_positions=False, eos_token_id=0,
            decoder_start_token_id=fields.take("pad_token_id", int, None),
        )  # fmt: skip

    def drawable(self, logits: jax.Array) -> jax.Array:
        """Padding, with which decoders start, has a logit of 0 in checkpoints that came from Marian, over most words':
        their bad_words_ids forbid it."""
        start = self.config.decoder_start_token_id
        return logits if start is None else logits.at[..., start].set(-jnp.inf)


def bart_config(
    fields: Fields,
    architecture: str,
    *,
    norm_first: bool = False,
    final_norm: bool = False,
    embed_norm: bool = True,
    learned_positions: bool = True,
    eos_token_id: int = 2,
    decoder_start_token_id: int | None = None,
) -> BartConfig:
    """The fields of BART and its kin. The others: the family's own."""
    # Written by transformers as properties of the encoder, by fairseq as choices that the class stands for.
    fields.raw("num_hidden_layers")  # repeats encoder_layers, or stands as its default beside them
    fields.expect("is_encoder_decoder", True, None)
    fields.expect("normalize_before", norm_first, None)
    fields.expect("normalize_embedding", embed_norm, None)
    fields.expect("add_final_layer_norm", final_norm, None)
    fields.expect("static_position_embeddings", not learned_positions, None)
    fields.expect("tie_word_embeddings", True, None)
    for name in _WITHOUT_USE:
        fields.raw(name)
    size = fields.size("d_model")
    fields.rename(init_std="initializer_range")
    shared: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": size,
        "max_position_embeddings": fields.size("max_position_embeddings", 1024),
        "norm_eps": 1e-5,
        "activation": fields.take("activation_function", str, "gelu"),
        "tie_word_embeddings": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "rope": None,
        "embed_scale": math.sqrt(size) if fields.take("scale_embedding", bool, False) else 1.0,
        **common(fields, eos_token_id=eos_token_id),
    }

    def stack(name: str) -> dict[str, Any]:
        layers, heads = fields.size(f"{name}_layers", 12), fields.size(f"{name}_attention_heads", 16)
        return shared | {
            "intermediate_size": fields.size(f"{name}_ffn_dim", 4096),
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": heads,
            "head_dim": size // heads,
            "windows": (None,) * layers,
        }

    return BartConfig(
        **stack("decoder"),
        encoder=ModelConfig(**stack("encoder")),
        norm_first=norm_first,
        gated=False,
        decoder_start_token_id=fields.take("decoder_start_token_id", int, decoder_start_token_id),
        forced_bos_token_id=fields.take("forced_bos_token_id", int, None),
        learned_positions=learned_positions,
        embed_norm=embed_norm,
        final_norm=final_norm,
    )


_WITHOUT_USE = (
    "_num_labels", "add_bias_logits", "classif_dropout", "decoder_layerdrop", "encoder_layerdrop",
    "extra_pos_embeddings", "force_bos_token_to_be_generated", "output_past", "replacing_rate", "save_step",
    "student_decoder_layers", "student_encoder_layers",
)  # fmt: skip
"""Of training and other heads, and generation defaults of old."""
