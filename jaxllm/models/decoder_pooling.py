"""Decoders that generate nothing: embedding models, classifiers of texts, and the rewards of texts and of their steps.

Any other decoder is an embedding model by `--task embed`.
"""

from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.core import Pooling
from jaxllm.layers.linear import Linear
from jaxllm.layers.parameter import Dtype, Source, linear_rows
from jaxllm.models.config import ModelConfig
from jaxllm.models.encoder import Transform
from jaxllm.models.fields import Fields
from jaxllm.models.gemma import Gemma2ForCausalLM, GemmaForCausalLM
from jaxllm.models.gpt2 import GPT2LMHeadModel
from jaxllm.models.internlm2 import InternLM2ForCausalLM
from jaxllm.models.jamba import JambaForCausalLM
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mistral import MistralForCausalLM
from jaxllm.models.phi3 import Phi3ForCausalLM
from jaxllm.models.pooling import Embedding, PoolingDecoder, SequenceClassification
from jaxllm.models.qwen2 import Qwen2ForCausalLM
from jaxllm.models.qwen3 import Qwen3ForCausalLM


class LlamaModel(Embedding, LlamaForCausalLM): ...


class MistralModel(Embedding, MistralForCausalLM): ...


class Qwen2Model(Embedding, Qwen2ForCausalLM): ...


class Qwen3Model(Embedding, Qwen3ForCausalLM): ...


class Gemma2Model(Embedding, Gemma2ForCausalLM): ...


class LlamaForSequenceClassification(SequenceClassification, LlamaForCausalLM): ...


class MistralForSequenceClassification(SequenceClassification, MistralForCausalLM): ...


class Qwen2ForSequenceClassification(SequenceClassification, Qwen2ForCausalLM): ...


class Qwen3ForSequenceClassification(SequenceClassification, Qwen3ForCausalLM): ...


class GemmaForSequenceClassification(SequenceClassification, GemmaForCausalLM): ...


class Gemma2ForSequenceClassification(SequenceClassification, Gemma2ForCausalLM): ...


class Phi3ForSequenceClassification(SequenceClassification, Phi3ForCausalLM): ...


class GPT2ForSequenceClassification(SequenceClassification, GPT2LMHeadModel): ...


class JambaForSequenceClassification(SequenceClassification, JambaForCausalLM): ...


def reward(num_scores: int) -> Pooling:
    """Plain scores of every token; the last one's is the text's."""
    return Pooling(task="classify", size=num_scores, sequence="last", per_token=True, activation="none")


class Qwen2ForRewardModel(PoolingDecoder, Qwen2ForCausalLM):
    """Qwen2.5-Math-RM (Yang et al. 2024): a score by two layers."""

    num_scores: ClassVar[int] = 1
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **Qwen2ForCausalLM.checkpoint_names,
        **linear_rows("transform.dense", "score.0"),
        **linear_rows("score", "score.2"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        return replace(super().configure(fields, architecture), pooling=reward(cls.num_scores))

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        size, std = config.hidden_size, config.initializer_range
        self.transform = Transform(size, "relu", None, dtype, bias=True, std=std)
        self.score = Linear(size, self.num_scores, dtype, axes=("embed", "classes"), bias=True, std=std)

    def outputs(self, hidden: jax.Array) -> jax.Array:
        return self.score(self.transform(hidden.astype(self.embed.table.dtype)), jnp.float32)


class Qwen2ForProcessRewardModel(Qwen2ForRewardModel):
    """Qwen2.5-Math-PRM (Zhang et al. 2025): two scores at each token that ends a step, of its being wrong and right."""

    num_scores = 2

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        config = super().configure(fields, architecture)
        pooling = replace(reward(cls.num_scores), task="token_classify", sequence=None, activation="softmax")
        return replace(config, pooling=pooling)


class InternLM2ForRewardModel(PoolingDecoder, InternLM2ForCausalLM):
    """InternLM2-Reward (Cai et al. 2024): a score of every token; a text is to end with the token trained for it."""

    checkpoint_names: ClassVar[dict[str, Source]] = {
        **InternLM2ForCausalLM.checkpoint_names,
        "score.kernel": Source.linear("v_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.raw("reward_token_id")  # which the caller ends a text with
        return replace(super().configure(fields, architecture), pooling=reward(1))

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        self.score = Linear(config.hidden_size, 1, dtype, axes=("embed", "classes"), std=config.initializer_range)

    def outputs(self, hidden: jax.Array) -> jax.Array:
        return self.score(hidden.astype(self.embed.table.dtype), jnp.float32)
