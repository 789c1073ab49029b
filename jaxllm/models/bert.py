"""BERT (Devlin et al. 2018): learned positions and segments, norms behind each half of a block, biases everywhere."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxllm.layers.embed import Embed
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import EncodeStep
from jaxllm.models.config import ModelConfig, common
from jaxllm.models.encoder import ClassHead, Encoder, EncoderAttention, Head, Transform, VocabularyHead
from jaxllm.models.fields import Fields


class BertBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        size = config.hidden_size
        self.attention = EncoderAttention(config, layer, dtype)
        self.attention_norm = LayerNorm(size, config.norm_eps, dtype)
        self.mlp = MLP(
            size, config.intermediate_size, config.activation, dtype,
            bias=True, std=config.initializer_range, out_std=config.out_std,
        )  # fmt: skip
        self.mlp_norm = LayerNorm(size, config.norm_eps, dtype)

    def __call__(self, x: jax.Array, rotation: Rotation, step: EncodeStep) -> jax.Array:
        """x [T, E] -> [T, E]."""
        x = self.attention_norm(x + self.attention(x, rotation, step))
        return self.mlp_norm(x + self.mlp(x))


class BertModel(Encoder):
    """The encoder itself, whose first token's hidden state stands for the text unless the checkpoint says otherwise."""

    checkpoint_prefix = "bert."
    checkpoint_aliases: ClassVar[dict[str, str]] = {
        "LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta",  # as TensorFlow named them
        "cls.predictions.decoder.bias": "cls.predictions.bias", "lm_head.decoder.bias": "lm_head.bias",
    }  # fmt: skip
    checkpoint_ignored = (r"embeddings\.position_ids$", r"pooler\.dense\.", r"^cls\.", r"^classifier\.")
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("bert.embeddings.word_embeddings.weight"),
        "positions.table": Source.of("bert.embeddings.position_embeddings.weight"),
        "types.table": Source.of("bert.embeddings.token_type_embeddings.weight"),
        **norm_rows("embed_norm", "bert.embeddings.LayerNorm"),
        **linear_rows(
            "layers.*.attention.qkv",
            *(f"bert.encoder.layer.*.attention.self.{name}" for name in ("query", "key", "value")),
        ),
        **linear_rows("layers.*.attention.out", "bert.encoder.layer.*.attention.output.dense"),
        **norm_rows("layers.*.attention_norm", "bert.encoder.layer.*.attention.output.LayerNorm"),
        **linear_rows("layers.*.mlp.up", "bert.encoder.layer.*.intermediate.dense"),
        **linear_rows("layers.*.mlp.down", "bert.encoder.layer.*.output.dense"),
        **norm_rows("layers.*.mlp_norm", "bert.encoder.layer.*.output.LayerNorm"),
    }

    @classmethod
    def configure_encoder(cls, fields: Fields, architecture: str) -> ModelConfig:
        return bert_config(fields, architecture)

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        size, std = config.hidden_size, config.initializer_range
        positions = config.max_position_embeddings + config.first_position
        self.positions = Embed(positions, size, dtype, axis="position", std=std)
        self.types = Embed(config.type_vocab_size, size, dtype, axis="segment", std=std)
        self.embed_norm = LayerNorm(size, config.norm_eps, dtype)
        self.layers = nnx.List(BertBlock(config, layer, dtype) for layer in range(config.num_layers))

    def encode(self, step: EncodeStep) -> jax.Array:
        types = self.types.table[...][:1] if step.token_types is None else self.types(step.token_types)
        x = self.embed(step.tokens) + self.positions(step.positions + self.config.first_position) + types
        return self.run_layers(self.embed_norm(x), (None,) * len(self.layers), step)

    def transform(self, activation: str, dtype: Dtype, *, norm: bool) -> Transform:
        """What BERT's heads begin with."""
        size, std = self.config.hidden_size, self.config.initializer_range
        after = LayerNorm(size, self.config.norm_eps, dtype) if norm else None
        return Transform(size, activation, after, dtype, bias=True, std=std)


def bert_config(fields: Fields, architecture: str, *, first_position: int = 0, **family: Any) -> ModelConfig:
    """The fields that BERT and its kin share; first_position: see ModelConfig; `family` gives the others."""
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_layers = fields.size("num_hidden_layers")
    fields.expect("position_embedding_type", "absolute", None)
    fields.expect("is_decoder", False, None)
    for name in (  # of pretraining, and of other programs
        "directionality", "finetuning_task", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
        "pooler_size_per_head", "pooler_type", "gradient_checkpointing", "output_past", "model_max_length",
    ):  # fmt: skip
        fields.raw(name)
    shared: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": fields.size("max_position_embeddings") - first_position,
        "first_position": first_position,
        "type_vocab_size": fields.size("type_vocab_size", 2),
        "norm_eps": fields.take("layer_norm_eps", float, 1e-12),
        "activation": fields.take("hidden_act", str, "gelu"),
        "tie_word_embeddings": fields.take("tie_word_embeddings", bool, True),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "windows": (None,) * num_layers,
        "rope": None,
    }
    return ModelConfig(architecture=architecture, **(shared | common(fields) | family))


class BertForSequenceClassification(BertModel):
    made_for = "classify"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **BertModel.checkpoint_names,
        **linear_rows("head.transform.dense", "bert.pooler.dense"),
        **linear_rows("head.out", "classifier"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return ClassHead(self.config, self.transform("tanh", dtype, norm=False), dtype)


class BertForTokenClassification(BertModel):
    made_for = "token_classify"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **BertModel.checkpoint_names,
        **linear_rows("head.out", "classifier"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return ClassHead(self.config, None, dtype)


class BertForMaskedLM(BertModel):
    made_for = "masked_lm"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **BertModel.checkpoint_names,
        **linear_rows("head.transform.dense", "cls.predictions.transform.dense"),
        **norm_rows("head.transform.norm", "cls.predictions.transform.LayerNorm"),
        "head.out.kernel": Source.linear("cls.predictions.decoder.weight"),
        "head.bias": Source.of("cls.predictions.decoder.bias"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return VocabularyHead(self.config, self.transform(self.config.activation, dtype, norm=True), dtype)
