"""nanochat (Karpathy 2025): Llama whose norms have no parameters, with an ungated MLP and capped logits.

Heads turn the other way round, and are normalised afterwards; the embedding is normalised too.
"""

from typing import ClassVar

import jax

from jaxllm.layers.attention import Placement
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import WeightlessRMSNorm
from jaxllm.layers.parameter import Source
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import Cache
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.hunyuan import HunYuanAttention
from jaxllm.models.llama import LlamaBlock, LlamaForCausalLM


class NanoChatAttention(HunYuanAttention):
    norm_class = WeightlessRMSNorm

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        assert rotation is not None
        cos, sin = rotation
        return super().place(q, k, (cos, -sin))


class NanoChatBlock(LlamaBlock):
    norm_class = WeightlessRMSNorm


class NanoChatForCausalLM(LlamaForCausalLM):
    block_class = NanoChatBlock
    attention_class = NanoChatAttention
    mlp_class = MLP
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.mlp.up.kernel": Source.linear("model.layers.*.mlp.fc1.weight"),
        "layers.*.mlp.down.kernel": Source.linear("model.layers.*.mlp.fc2.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default_nullable(final_logit_softcapping=15.0)
        bias = fields.take("attention_bias", bool, False)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=1,
            activation=fields.take("hidden_act", str, "relu2"),
            qkv_bias=bias,
            out_bias=bias,
            logit_soft_cap=fields.take("final_logit_softcapping", float, None),
        )

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        x = self.norm(self.embed(step.tokens))
        x, cache = self.run_layers(x, cache, step, each=self.rotations(step.positions))
        return self.norm(x), cache
