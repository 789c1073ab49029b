"""Trinity (Arcee AI 2025): sandwich norms, GLM-4.5's experts, and attention whose heads are gated; positions on layers
with a window alone."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.layers.attention import attend
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.linear import Linear
from jaxllm.layers.moe import Mixture, SigmoidTopK
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.rope import Rotation
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.config import ModelConfig, decoder_config, read_layer_types, without_global_rope
from jaxllm.models.deepseek import EXPERT_NAMES
from jaxllm.models.fields import Fields
from jaxllm.models.gemma import SandwichBlock
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock
from jaxllm.models.qwen3 import Qwen3Attention, Qwen3ForCausalLM


class AfmoeAttention(Qwen3Attention):
    """What heads have read is multiplied by the sigmoid of a projection of the input."""

    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        heads = config.num_heads * config.head_dim
        self.gate = Linear(config.hidden_size, heads, dtype, axes=("embed", "heads"), std=config.initializer_range)

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        q, k, v = self.heads(x)
        q, k, placement = self.place(q, k, rotation)
        mixed, cache = attend(q, k, v, step, cache, scale=self.scale, placement=placement, window=self.window)
        gate = jax.nn.sigmoid(self.gate(x, jnp.float32))
        return self.out((mixed.reshape(gate.shape).astype(jnp.float32) * gate).astype(x.dtype)), cache


class AfmoeBlock(SandwichBlock, MoEBlock):
    """x + norm(attention(norm(x))), then x + norm(experts(norm(x)))."""


class AfmoeForCausalLM(LlamaForCausalLM):
    block_class = AfmoeBlock
    attention_class = AfmoeAttention
    checkpoint_names: ClassVar[dict[str, Source]] = (
        Qwen3ForCausalLM.checkpoint_names
        | EXPERT_NAMES
        | {
            "layers.*.attention.gate.kernel": Source.linear("model.layers.*.self_attn.gate_proj.weight"),
            "layers.*.attention_out_norm.weight": Source.of("model.layers.*.post_attention_layernorm.weight"),
            "layers.*.mlp_norm.weight": Source.of("model.layers.*.pre_mlp_layernorm.weight"),
            "layers.*.mlp_out_norm.weight": Source.of("model.layers.*.post_mlp_layernorm.weight"),
            "layers.*.mlp.router.kernel": Source.linear("model.layers.*.mlp.router.gate.weight"),
            "layers.*.mlp.correction": Source.of("model.layers.*.mlp.expert_bias"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        for name in ("n_group", "num_expert_groups", "topk_group", "num_limited_groups"):
            fields.expect(name, 1, None)
        for name in ("score_func", "scoring_func"):
            fields.expect(name, "sigmoid", None)
        fields.expect("route_norm", True, None)
        for name in ("load_balance_coeff", "use_grouped_mm"):  # of training, and of another program
            fields.raw(name)
        num_layers, dense = fields.size("num_hidden_layers"), fields.take("num_dense_layers", int, 1)
        inner_size = fields.size("moe_intermediate_size", 1408)
        num_experts = fields.size("num_experts", 64)
        fields.expect("num_local_experts", num_experts, None)
        mixture = Mixture(
            sparse=tuple(layer >= dense for layer in range(num_layers)),
            num_experts=num_experts,
            inner_size=inner_size,
            routing=SigmoidTopK(fields.size("num_experts_per_tok", 6), scale=fields.take("route_scale", float, 1.0)),
            shared_size=inner_size * fields.take("num_shared_experts", int, 2),
            correction=True,
        )
        period = fields.size("global_attn_every_n_layers", 4)
        windows = read_layer_types(fields, num_layers, fields.size("sliding_window", 1024), period)
        scaled_up = fields.take("mup_enabled", bool, False)
        bias = fields.take("attention_bias", bool, False)
        config = decoder_config(
            fields,
            architecture,
            head_dim=128,
            embed_scale=fields.size("hidden_size") ** 0.5 if scaled_up else 1.0,
            windows=windows,
            qkv_bias=bias,
            out_bias=bias,
            mixture=mixture,
        )
        return without_global_rope(config)
