"""StableLM 3B and 2 (Stability AI 2023, 2024): Llama with LayerNorm and a quarter of each head turned; the larger ones
in parallel blocks, with queries and keys normalised by a weight for each head."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxllm.layers.attention import Placement
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Constant, Dtype, Parameter, Source, norm_rows
from jaxllm.layers.rope import Rotation
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM
from jaxllm.models.parallel import ParallelBlock


class HeadNorm(LayerNorm):
    """A LayerNorm for each head, without bias."""

    def __init__(self, num_heads: int, head_dim: int, eps: float, dtype: Dtype):
        super().__init__(head_dim, eps, dtype, weight=False, bias=False)
        self.weights = Parameter((num_heads, head_dim), dtype, axes=("heads", "norm"), init=Constant(1.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, H, D] -> [T, H, D]."""
        weights = self.weights[...].astype(jnp.float32)[None]
        return (super().__call__(x.astype(jnp.float32)) * weights).astype(x.dtype)


class StableLmAttention(LlamaAttention):
    def __init__(self, config: ModelConfig, layer: int, dtype: Dtype):
        super().__init__(config, layer, dtype)
        self.q_norm, self.k_norm = (
            HeadNorm(heads, config.head_dim, config.norm_eps, dtype) if config.qk_norm else None
            for heads in (config.num_heads, config.num_kv_heads)
        )

    def place(self, q: jax.Array, k: jax.Array, rotation: Rotation) -> tuple[jax.Array, jax.Array, Placement]:
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return super().place(q, k, rotation)


class StableLmForCausalLM(LlamaForCausalLM):
    block_class = ParallelBlock
    attention_class = StableLmAttention
    checkpoint_names: ClassVar[dict[str, Source]] = LlamaForCausalLM.checkpoint_names | {
        **norm_rows("layers.*.attention_norm", "model.layers.*.input_layernorm"),
        "layers.*.attention.q_norm.weights": Source.of("model.layers.*.self_attn.q_layernorm.norms.*.weight"),
        "layers.*.attention.k_norm.weights": Source.of("model.layers.*.self_attn.k_layernorm.norms.*.weight"),
        **norm_rows("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm"),
        **norm_rows("norm", "model.norm"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(rope_pct="partial_rotary_factor", norm_eps="layer_norm_eps")  # the first files' names
        fields.expect("rotary_scaling_factor", 1, None)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=0,
            partial_rotary_factor=0.25,
            norm_eps=fields.take("layer_norm_eps", float, 1e-5),
            qkv_bias=fields.take("use_qkv_bias", bool, False),
            parallel_norms=1 if fields.take("use_parallel_residual", bool, False) else 0,
            qk_norm=fields.take("qk_layernorm", bool, False),
        )
