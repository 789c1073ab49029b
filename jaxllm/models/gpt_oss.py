"""gpt-oss (OpenAI 2025): attention with sinks, every other layer with a window, clamped experts, biases everywhere."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.layers.attention import attend
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Constant, Dtype, Layout, Parameter, Source
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock

INTERLEAVED = Layout(
    lambda shape: shape, lambda tensor, shape: jnp.concatenate([tensor[..., ::2], tensor[..., 1::2]], axis=-1)
)
"""Gate and up columns in turn, where we have all of gate's first."""


class GptOssAttention(LlamaAttention):
    """A learned logit more per head takes its share of each softmax."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.sinks = Parameter((config.num_heads,), dtype, axes=("heads",), init=Constant(0.0))

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        q, k, v = self.heads(x)
        q, k, placement = self.place(q, k, rotation)
        sinks = self.sinks[...].astype(jnp.float32)
        mixed, cache = attend(
            q, k, v, step, cache, scale=self.scale, placement=placement, window=self.window, sinks=sinks
        )
        return self.out(mixed.reshape(x.shape[0], -1)), cache


class GptOssForCausalLM(LlamaForCausalLM):
    block_class = MoEBlock
    attention_class = GptOssAttention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        "layers.*.attention.sinks": Source.of("model.layers.*.self_attn.sinks"),
        "layers.*.mlp.router.kernel": Source.linear("model.layers.*.mlp.router.weight"),
        "layers.*.mlp.router.bias": Source.of("model.layers.*.mlp.router.bias"),
        "layers.*.mlp.experts.gate_up": Source(("model.layers.*.mlp.experts.gate_up_proj",), INTERLEAVED),
        "layers.*.mlp.experts.gate_up_bias": Source(("model.layers.*.mlp.experts.gate_up_proj_bias",), INTERLEAVED),
        "layers.*.mlp.experts.down": Source.of("model.layers.*.mlp.experts.down_proj"),
        "layers.*.mlp.experts.down_bias": Source.of("model.layers.*.mlp.experts.down_proj_bias"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        fields.default_rope("yarn", factor=32.0, original_max_position_embeddings=4096, truncate=False)
        fields.expect("swiglu_limit", 7.0)
        fields.expect("swiglu_alpha", 1.702)
        for name in ("initial_context_length", "experts_per_token"):  # repeat what other fields say
            fields.raw(name)
        num_layers = fields.size("num_hidden_layers")
        mixture = Mixture(
            sparse=(True,) * num_layers,
            num_experts=fields.size("num_local_experts", None) or fields.size("num_experts"),
            inner_size=fields.size("intermediate_size"),
            routing=SoftmaxTopK(fields.size("num_experts_per_tok", 4)),
            activation="clamped_swiglu",
            router_bias=True,
            expert_bias=True,
        )
        bias = fields.take("attention_bias", bool, True)
        return decoder_config(
            fields,
            architecture,
            head_dim=64,
            rope_theta=150000.0,
            windows=read_layer_types(fields, num_layers, fields.size("sliding_window", 128), 2),
            qkv_bias=bias,
            out_bias=bias,
            mixture=mixture,
        )
