"""ModernBERT (Warner et al. 2024): rotary positions, norms before each half of a block, gated MLPs, hardly a bias, and
windows on two of three layers, which turn by a base of their own."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx

from jaxllm.core import Pooling
from jaxllm.layers.mlp import GatedMLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import EncodeStep
from jaxllm.models.config import ModelConfig, common, read_layer_types, with_local_rope
from jaxllm.models.encoder import ClassHead, Encoder, EncoderAttention, Head, Purpose, Transform, VocabularyHead
from jaxllm.models.fields import Fields
from jaxllm.models.pooling import Whose
from jaxllm.models.rotations import read_rope


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig(ModelConfig):
    """The numbers of a ModernBERT.

    Attributes:
        norm_bias: the norms have one.
        transform_activation, transform_bias: of what the heads begin with.
    """

    norm_bias: bool
    transform_activation: str
    transform_bias: bool


class ModernBertBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The first block's attention reads the embedding's own norm."""

    def __init__(self, config: ModernBertConfig, layer: int, dtype: Dtype):
        self.attention_norm = None if layer == 0 else make_norm(config, dtype)
        self.attention = EncoderAttention(config, layer, dtype)
        self.mlp_norm = make_norm(config, dtype)
        self.mlp = GatedMLP(
            config.hidden_size, config.intermediate_size, config.activation, dtype,
            bias=config.mlp_bias, std=config.initializer_range, out_std=config.out_std,
        )  # fmt: skip

    def __call__(self, x: jax.Array, rotation: Rotation, step: EncodeStep) -> jax.Array:
        """x [T, E] -> [T, E]."""
        read = x if self.attention_norm is None else self.attention_norm(x)
        x = x + self.attention(read, rotation, step)
        return x + self.mlp(self.mlp_norm(x))


def make_norm(config: ModernBertConfig, dtype: Dtype) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.norm_eps, dtype, bias=config.norm_bias)


class ModernBertModel(Encoder):
    """The encoder itself, whose first token's hidden state stands for the text unless the checkpoint says otherwise."""

    config: ModernBertConfig

    checkpoint_prefix = "model."
    checkpoint_ignored = (r"^head\.", r"^decoder\.", r"^classifier\.")
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("model.embeddings.tok_embeddings.weight"),
        **norm_rows("embed_norm", "model.embeddings.norm"),
        **norm_rows("layers.*.attention_norm", "model.layers.*.attn_norm"),
        **linear_rows("layers.*.attention.qkv", "model.layers.*.attn.Wqkv"),
        **linear_rows("layers.*.attention.out", "model.layers.*.attn.Wo"),
        **norm_rows("layers.*.mlp_norm", "model.layers.*.mlp_norm"),
        **linear_rows("layers.*.mlp.gate_up", "model.layers.*.mlp.Wi"),
        **linear_rows("layers.*.mlp.down", "model.layers.*.mlp.Wo"),
        **norm_rows("norm", "model.final_norm"),
    }

    @classmethod
    def configure_encoder(cls, fields: Fields, architecture: str) -> ModernBertConfig:
        return modernbert_config(fields, architecture)

    @classmethod
    def read_pooling(cls, fields: Fields, config: ModelConfig, classified: Whose = "cls") -> Pooling:
        named = fields.take("classifier_pooling", str, "cls")
        fields.expect("classifier_pooling", "cls", "mean", None)
        return super().read_pooling(fields, config, named)

    def __init__(self, config: ModernBertConfig, dtype: Dtype):
        super().__init__(config, dtype)
        self.embed_norm = make_norm(config, dtype)
        self.layers = nnx.List(ModernBertBlock(config, layer, dtype) for layer in range(config.num_layers))
        self.norm = make_norm(config, dtype)

    def encode(self, step: EncodeStep) -> jax.Array:
        ropes = self.config.layer_ropes or ()
        made = {rope: None if rope is None else rope(step.positions) for rope in dict.fromkeys(ropes)}
        x = self.run_layers(self.embed_norm(self.embed(step.tokens)), [made[rope] for rope in ropes], step)
        return self.norm(x)

    def transform(self, dtype: Dtype) -> Transform:
        """What ModernBERT's heads begin with."""
        config = self.config
        return Transform(
            config.hidden_size, config.transform_activation, make_norm(config, dtype), dtype,
            bias=config.transform_bias, std=config.initializer_range,
        )  # fmt: skip


def modernbert_config(fields: Fields, architecture: str) -> ModernBertConfig:
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_layers, head_dim = fields.size("num_hidden_layers"), hidden_size // num_heads
    window = fields.size("local_attention", 128) // 2 + 1  # on either side, the token itself included
    period = fields.size("global_attn_every_n_layers", 3)
    windows = tuple(window if layer % period else None for layer in range(num_layers))
    if fields.values.get("layer_types") is not None:
        windows = read_layer_types(fields, num_layers, window, period=0)
    fields.raw("layer_types")
    fields.default_nullable(local_rope_theta=10000.0)  # null is as the global one
    theta, local_theta = fields.take("global_rope_theta", float, 160000.0), fields.take("local_rope_theta", float, None)
    rope, positions = read_rope(fields, head_dim, fields.size("max_position_embeddings", 8192), theta=theta)
    fields.expect("position_embedding_type", "absolute", None)  # in the files, and without meaning
    for name in (  # of training, and of other programs' kernels
        "cls_token_id", "deterministic_flash_attn", "gradient_checkpointing", "initializer_cutoff_factor",
        "layer_norm_eps", "mlp_dropout", "reference_compile", "repad_logits_with_grad", "sparse_pred_ignore_index",
        "sparse_prediction",
    ):  # fmt: skip
        fields.raw(name)
    bias = fields.take("attention_bias", bool, False)
    config = ModernBertConfig(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        norm_eps=fields.take("norm_eps", float, 1e-5),
        norm_bias=fields.take("norm_bias", bool, False),
        activation=fields.take("hidden_activation", str, "gelu"),
        transform_activation=fields.take("classifier_activation", str, "gelu"),
        transform_bias=fields.take("classifier_bias", bool, False),
        tie_word_embeddings=fields.take("tie_word_embeddings", bool, True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.take("mlp_bias", bool, False),
        head_bias=fields.take("decoder_bias", bool, True),
        windows=windows,
        rope=rope,
        **common(fields),
    )
    return with_local_rope(config, fields, theta if local_theta is None else local_theta)


class ModernBertForSequenceClassification(ModernBertModel):
    made_for: ClassVar[Purpose] = "classify"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **ModernBertModel.checkpoint_names,
        **linear_rows("head.transform.dense", "head.dense"),
        **norm_rows("head.transform.norm", "head.norm"),
        **linear_rows("head.out", "classifier"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return ClassHead(self.config, self.transform(dtype), dtype)


class ModernBertForTokenClassification(ModernBertForSequenceClassification):
    made_for = "token_classify"


class ModernBertForMaskedLM(ModernBertModel):
    made_for = "masked_lm"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **ModernBertModel.checkpoint_names,
        **linear_rows("head.transform.dense", "head.dense"),
        **norm_rows("head.transform.norm", "head.norm"),
        "head.out.kernel": Source.linear("decoder.weight"),
        "head.bias": Source.of("decoder.bias"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return VocabularyHead(self.config, self.transform(dtype), dtype, bias=self.config.head_bias)
