"""GPT-Neo (Black et al. 2021) and TinyStories: GPT-2 with unscaled scores, no bias on queries, keys and values, and, as
a rule, a window on every other layer."""

from typing import Any, ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.parameter import Source, linear_rows
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.fields import Fields, shortened
from jaxllm.models.gpt2 import GPT2LMHeadModel, ignore_summary


class GPTNeoForCausalLM(GPT2LMHeadModel):
    checkpoint_ignored = (r"attn\.attention\.(bias|masked_bias)$",)  # the causal mask of old files
    checkpoint_names: ClassVar[dict[str, Source]] = GPT2LMHeadModel.checkpoint_names | {
        **linear_rows(
            "layers.*.attention.qkv",
            "transformer.h.*.attn.attention.q_proj",
            "transformer.h.*.attn.attention.k_proj",
            "transformer.h.*.attn.attention.v_proj",
        ),
        **linear_rows("layers.*.attention.out", "transformer.h.*.attn.attention.out_proj"),
        **linear_rows("layers.*.mlp.up", "transformer.h.*.mlp.c_fc"),
        **linear_rows("layers.*.mlp.down", "transformer.h.*.mlp.c_proj"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.rename(
            num_layers="num_hidden_layers", num_heads="num_attention_heads", activation_function="hidden_act"
        )  # fmt: skip
        fields.put("intermediate_size", fields.size("intermediate_size", 4 * fields.size("hidden_size")))
        ignore_summary(fields)
        return decoder_config(
            fields,
            architecture,
            eos_token_id=50256,
            tied=True,
            norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
            activation=fields.take("hidden_act", str, "gelu_new"),
            attention_scale=1.0,
            out_bias=True,
            mlp_bias=True,
            rope=None,
            windows=_windows(fields, fields.size("num_hidden_layers"), fields.size("window_size", 256)),
        )


def _windows(fields: Fields, num_layers: int, window: int) -> tuple[int | None, ...]:
    """Per-layer windows from attention_types, [[pattern, times], ...], or from the names written out."""
    groups: list[Any] = fields.take_list("attention_types", list, [[["global", "local"], num_layers // 2]])
    repeated = (
        len(group) == 2 and isinstance(group[0], list) and group[1] in range(num_layers + 1) for group in groups
    )
    if not all(repeated):
        raise ConfigError(
            f"{fields.where}attention_types={shortened(groups)} must hold patterns, and how often each is repeated"
        )
    names = [str(name) for pattern, times in groups for _ in range(times) for name in pattern]
    names = fields.take_list("attention_layers", str, names)
    if len(names) != num_layers or not set(names) <= {"global", "local"}:
        raise ConfigError(f"{fields.where}attention_layers must hold {num_layers} times global or local, not {names}")
    return tuple(window if name == "local" else None for name in names)
