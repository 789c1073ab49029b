"""Models that generate nothing: what they make of a sequence's hidden states, and decoders that are used so."""

from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxllm.core import Pooling
from jaxllm.errors import ConfigError
from jaxllm.layers.encoder import pool
from jaxllm.layers.linear import Linear
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.step import EncodeStep
from jaxllm.models.causal_lm import CausalLM
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields, shortened
from jaxllm.models.model import Model

Whose = Literal["cls", "mean", "last"]
"""Whose hidden state stands for a sequence: see Pooling."""


class PoolingModel(Model):
    """Base of what runs on an EncodeStep: hidden states, then numbers made of each of them or of their pool."""

    def encode(self, step: EncodeStep) -> jax.Array:
        """The step's tokens through the layers: hidden states [T, E]."""
        raise NotImplementedError

    def outputs(self, hidden: jax.Array) -> jax.Array:
        """hidden [N, E], of tokens or of whole sequences -> [N, D] float32, D being config.pooling.size."""
        raise NotImplementedError

    def pooled(self, hidden: jax.Array, step: EncodeStep) -> jax.Array:
        """hidden [T, E] -> [R, D] float32, a vector for each sequence."""
        pooling = self.config.pooling
        assert pooling is not None
        assert pooling.sequence is not None
        return self.outputs(pool(hidden, step, pooling.sequence))


def read_labels(fields: Fields) -> tuple[str, ...]:
    """The classes that a classification head tells apart; transformers leaves out two without names of their own."""
    names, count = fields.take("id2label", dict, None), fields.size("num_labels", 2)
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(count))
    if not names or not all(key.isdecimal() for key in names):
        raise ConfigError(f"{fields.where}id2label={shortened(names)} must name the classes by their numbers")
    return tuple(str(names[i]) for i in sorted(names, key=int))


def read_embedding(fields: Fields, size: int, sequence: Whose) -> Pooling:
    """Embeddings of unit length; sequence: the family's own, where no file of the checkpoint says otherwise."""
    fields.raw("is_matryoshka")
    dimensions = tuple(sorted(fields.take_list("matryoshka_dimensions", int, [])))
    return Pooling(
        task="embed", size=size, sequence=sequence, per_token=True, activation="normalize", dimensions=dimensions
    )


def read_classification(fields: Fields, sequence: Whose | None) -> Pooling:
    """Classes of a sequence, or of each of its tokens where `sequence` is None.

    The activation is what sentence-transformers' cross-encoders name, or follows from transformers' problem_type.
    """
    labels = read_labels(fields)
    own = (fields.take("sentence_transformers", dict, {}) or {}).get("activation_fn")
    named = own or fields.raw("sbert_ce_default_activation_function")
    problem = fields.take("problem_type", str, None)
    if named is not None:
        kinds = {"Identity": "none", "Sigmoid": "sigmoid", "Softmax": "softmax"}
        kind = str(named).rpartition(".")[2]
        if kind not in kinds:
            raise ConfigError(
                f"config.json: activation function {named!r} of the scores is not supported; known: {', '.join(kinds)}"
            )
        activation = kinds[kind]
    elif problem == "regression":
        activation = "none"
    elif problem == "multi_label_classification" or len(labels) == 1:
        activation = "sigmoid"
    else:
        activation = "softmax"
    task: Any = "token_classify" if sequence is None else "classify"
    return Pooling(
        task=task, size=len(labels), sequence=sequence, per_token=sequence is None,
        activation=activation, labels=labels,  # type: ignore[arg-type]
    )  # fmt: skip


class PoolingDecoder(PoolingModel, CausalLM):
    """A decoder without its head, to be mixed into a family's class: `class Foo(Embedding, FooForCausalLM)`."""

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(replace(config, tie_word_embeddings=True), dtype)
        self.config = config

    def encode(self, step: EncodeStep) -> jax.Array:
        hidden, _ = self(step, None)  # type: ignore[arg-type]  # attend() knows what to do with any kind of step
        return hidden

    def ignores_tensor(self, name: str) -> bool:
        head = {tensor for row in ("head.kernel", "head.bias") if row in self.checkpoint_names
                for tensor in self.checkpoint_names[row].names}  # fmt: skip
        return name in head or super().ignores_tensor(name)

    def ignores_parameter(self, path: str) -> bool:
        return path.startswith("head.")

    def repeats(self, name: str) -> str | None:
        return None  # whose head is left over, tied or not


class Embedding(PoolingDecoder):
    """The last token's hidden state, as a rule, for the whole text."""

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        config = super().configure(fields, architecture)
        return replace(config, pooling=read_embedding(fields, config.output_size, "last"))

    def outputs(self, hidden: jax.Array) -> jax.Array:
        return hidden.astype(jnp.float32)


class SequenceClassification(PoolingDecoder):
    """Scores of the last token's hidden state, one for each class."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.checkpoint_names = {**cls.checkpoint_names, "score.kernel": Source.linear("score.weight")}

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        config = super().configure(fields, architecture)
        return replace(config, pooling=read_classification(fields, "last"))

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        assert config.pooling is not None
        self.score = Linear(
            config.output_size, config.pooling.size, dtype, axes=("embed", "classes"), std=config.initializer_range
        )

    def outputs(self, hidden: jax.Array) -> jax.Array:
        return self.score(hidden.astype(self.score.kernel.dtype), jnp.float32)


def as_embedding(model_class: type[CausalLM]) -> type[PoolingModel]:
    """The decoder's class as an embedding model's, of the same module: whose code it is decides what is kept of it."""
    own = {"__doc__": model_class.__doc__, "__module__": model_class.__module__}
    return type(f"{model_class.__name__}Embedding", (Embedding, model_class), own)
