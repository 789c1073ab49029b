"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere, an ungated MLP, as a rule a tied head.

Its checkpoints come from TensorFlow by way of Conv1D, so that weights are stored [in, out] and qkv already fused.
"""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxllm.layers.embed import Embed
from jaxllm.layers.mlp import MLP
from jaxllm.layers.norm import LayerNorm
from jaxllm.layers.parameter import Dtype, Source
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.causal_lm import Cache, CausalLM
from jaxllm.models.config import ModelConfig, common
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaAttention, LlamaBlock


def gpt2_config(fields: Fields, architecture: str, *, tied: bool = True, **family: Any) -> ModelConfig:
    """The fields that GPT-2 and its kin share; `family` gives the others.

    tied: tie_word_embeddings where the file has no such field.
    """
    hidden_size, num_heads, num_layers = fields.size("n_embd"), fields.size("n_head"), fields.size("n_layer")
    positions = fields.size("n_positions")
    fields.expect("n_ctx", positions, None)
    fields.expect("scale_attn_weights", True)
    ignore_summary(fields)
    shared: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("n_inner", 4 * hidden_size),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": positions,
        "norm_eps": fields.take("layer_norm_epsilon", float, 1e-5),
        "activation": fields.take("activation_function", str, "gelu_new"),
        "tie_word_embeddings": fields.take("tie_word_embeddings", bool, tied),
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "windows": (None,) * num_layers,
        "rope": None,
    }
    return ModelConfig(architecture=architecture, **(shared | common(fields, eos_token_id=50256) | family))


def ignore_summary(fields: Fields) -> None:
    """Fields of heads that are not the language model's."""
    for name in ("n_special", "predict_special_tokens", "summary_activation", "summary_first_dropout"):
        fields.raw(name)
    for name in ("summary_proj_to_labels", "summary_type", "summary_use_proj"):
        fields.raw(name)


class GPT2Block(LlamaBlock):
    norm_class = LayerNorm


class GPT2LMHeadModel(CausalLM):
    """The whole model. Its classes are attributes, so that a subclass swaps one."""

    block_class: ClassVar[type[LlamaBlock]] = GPT2Block
    attention_class: ClassVar[type[LlamaAttention]] = LlamaAttention
    mlp_class: ClassVar[type[MLP]] = MLP

    checkpoint_prefix = "transformer."
    checkpoint_ignored = (r"h\.\d+\.attn\.(bias|masked_bias)$",)  # the causal mask of old files
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.wte.weight"),
        "positions.table": Source.of("transformer.wpe.weight"),
        "layers.*.attention_norm.weight": Source.of("transformer.h.*.ln_1.weight"),
        "layers.*.attention_norm.bias": Source.of("transformer.h.*.ln_1.bias"),
        "layers.*.attention.qkv.kernel": Source.of("transformer.h.*.attn.c_attn.weight"),
        "layers.*.attention.qkv.bias": Source.of("transformer.h.*.attn.c_attn.bias"),
        "layers.*.attention.out.kernel": Source.of("transformer.h.*.attn.c_proj.weight"),
        "layers.*.attention.out.bias": Source.of("transformer.h.*.attn.c_proj.bias"),
        "layers.*.mlp_norm.weight": Source.of("transformer.h.*.ln_2.weight"),
        "layers.*.mlp_norm.bias": Source.of("transformer.h.*.ln_2.bias"),
        "layers.*.mlp.up.kernel": Source.of("transformer.h.*.mlp.c_fc.weight"),
        "layers.*.mlp.up.bias": Source.of("transformer.h.*.mlp.c_fc.bias"),
        "layers.*.mlp.down.kernel": Source.of("transformer.h.*.mlp.c_proj.weight"),
        "layers.*.mlp.down.bias": Source.of("transformer.h.*.mlp.c_proj.bias"),
        "norm.weight": Source.of("transformer.ln_f.weight"),
        "norm.bias": Source.of("transformer.ln_f.bias"),
        "head.kernel": Source.linear("lm_head.weight"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("scale_attn_by_inverse_layer_idx", False)
        return gpt2_config(fields, architecture)

    def __init__(self, config: ModelConfig, dtype: Dtype):
        super().__init__(config, dtype)
        size, std = config.hidden_size, config.initializer_range
        self.positions = Embed(config.max_position_embeddings, size, dtype, axis="position", std=std)
        self.layers = nnx.List(
            self.block_class(config, layer, dtype, self.attention_class, self.mlp_class)
            for layer in range(config.num_layers)
        )
        self.norm = LayerNorm(size, config.norm_eps, dtype)

    def __call__(self, step: Step | DenseStep, cache: Cache | None) -> tuple[jax.Array, Cache | None]:
        x = self.embed(step.tokens) + self.positions(step.positions)
        x, cache = self.run_layers(x, cache, None, step)
        return self.norm(x), cache
