"""What a checkpoint's config.json says, checked: every field is consumed, ignored on purpose, or an error."""

import math
from dataclasses import dataclass, replace
from typing import Any

from jaxllm.core import Pooling
from jaxllm.errors import ConfigError
from jaxllm.layers.mla import Latent
from jaxllm.layers.mlp import ACTIVATIONS
from jaxllm.layers.moe import Mixture
from jaxllm.layers.rope import Linear, Llama3, LongRope, Rope, Yarn
from jaxllm.layers.ssm import StateSpace


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The numbers a decoder is built from, whatever its family calls them.

    Attributes:
        max_position_embeddings: positions the checkpoint is made for.
        windows: per layer, positions a token sees, itself included; None is all.
        rope: None for a family with learned positions or ALiBi.
        alibi: per head, what a score loses for each position between query and key; None in most families.
        parallel_norms: norms of a block whose attention and MLP read the same input, one for both or one each;
            0 where the MLP reads what the attention made.
        qk_norm: queries and keys are normalised head by head, in families that leave it open.
        head_bias: the untied head has a bias.
        layer_ropes: per layer, where layers differ; None for a layer without positions.
        attention_scale: what scores are multiplied by; None is 1 / sqrt(head_dim).
        clip_qkv: queries, keys and values are clipped to [-clip_qkv, clip_qkv]; None leaves them.
        soft_cap, logit_soft_cap: bounds of attention scores and of logits, by tanh.
        embed_scale, residual_scale, logit_scale: factors of the embedding, of what a block adds, and of the logits.
        mixture: experts in place of some or all layers' MLPs.
        latent: the sizes of multi-head latent attention; None in families that cache keys and values.
        state_space: the sizes of state-space layers; None in families without any.
        recurrent: per layer, whether it is a state-space layer; empty in families without any.
        wide_residual: what the layers add is summed in float32, whatever type the weights have.
        initializer_range: standard deviation of random weights.
        pooling: what a model that generates nothing makes of its hidden states; None in one that generates.
        type_vocab_size: segments of a text that an encoder tells apart; 0 where it knows of none.
        first_position: the row of the table of learned positions that a text begins with.
        dtype: the checkpoint's own type.
        eos_token_ids: ids that end a text; generation_config.json may name others.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    norm_eps: float
    activation: str
    tie_word_embeddings: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    windows: tuple[int | None, ...]
    rope: Rope | None
    alibi: tuple[float, ...] | None = None
    parallel_norms: int = 0
    qk_norm: bool = False
    head_bias: bool = False
    initializer_range: float
    dtype: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    layer_ropes: tuple[Rope | None, ...] | None = None
    attention_scale: float | None = None
    clip_qkv: float | None = None
    soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    mixture: Mixture | None = None
    latent: Latent | None = None
    pooling: Pooling | None = None
    type_vocab_size: int = 0
    first_position: int = 0
    state_space: StateSpace | None = None
    recurrent: tuple[bool, ...] = ()
    wide_residual: bool = False

    def __post_init__(self) -> None:
        assert len(self.windows) == self.num_layers
        assert self.mixture is None or len(self.mixture.sparse) == self.num_layers
        assert len(self.recurrent) in (0, self.num_layers)
        assert self.layer_ropes is None or len(self.layer_ropes) == self.num_layers
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"config.json: num_key_value_heads={self.num_kv_heads} must divide num_attention_heads={self.num_heads}"
            )
        if self.rope is not None and self.rope.head_dim % 2:
            raise ConfigError(f"config.json: head_dim={self.rope.head_dim} must be even for rotary position embedding")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"config.json: activation {self.activation!r} is not supported; known: {', '.join(ACTIVATIONS)}"
            )

    @property
    def out_std(self) -> float:
        """Standard deviation of random weights that write to the residual stream, smaller in deeper models (GPT-2)."""
        return self.initializer_range / (2 * self.num_layers) ** 0.5

    def within(self, context: int) -> "ModelConfig":
        """The configuration of a model that is run for texts of `context` positions at most."""
        ropes = self.layer_ropes and tuple(rope and rope.within(context) for rope in self.layer_ropes)
        return replace(self, rope=self.rope and self.rope.within(context), layer_ropes=ropes)


_REQUIRED: Any = object()

_WITHOUT_INFLUENCE = """
    activation_dropout batch_size learning_rate resid_dropout _attn_implementation _attn_implementation_autoset
    _commit_hash _name_or_path attention_dropout auto_map chunk_size_feed_forward classifier_dropout dropout
    embd_pdrop embed_dropout embedding_dropout attn_pdrop resid_pdrop residual_dropout layerdrop
    gradient_checkpointing hidden_dropout hidden_dropout_prob attention_probs_dropout_prob id2label label2id
    is_decoder is_llama_config keys_to_ignore_at_inference max_tokenizer_truncation name_or_path num_labels
    output_attentions
    output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type reorder_and_upcast_attn
    return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id task_specific_params
    tokenizer_class torchscript transformers.js_config transformers_version unsloth_fixed unsloth_version use_cache
    use_bfloat16 use_return_dict
"""
_GENERATION_DEFAULTS = """
    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores prefix remove_invalid_values repetition_penalty suppress_tokens temperature
    tf_legacy_loss tie_encoder_decoder top_k top_p typical_p
"""

IGNORED = frozenset(f"{_WITHOUT_INFLUENCE} {_GENERATION_DEFAULTS}".split())
"""Fields about training, the file or other programs, and generation settings, now generation_config.json's."""

EXPECTED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "partial_rotary_factor": (1, None),
    "pruned_heads": ({}, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
}
"""Fields whose other values would change the computation in a way that no model here implements."""


class Fields:
    """The fields of a JSON object, ticked off as they are read."""

    def __init__(self, values: dict[str, Any], where: str = "config.json: "):
        self.values = values
        self.where = where
        self.left = set(values)

    def raw(self, name: str, default: Any = None) -> Any:
        """The value as it stands, null included, or the default where the field is absent."""
        self.left.discard(name)
        return self.values.get(name, default)

    def take(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value checked to be of `kind`; the default, not checked, where the field is absent or null."""
        value = self.raw(name)
        if value is None:
            if default is _REQUIRED:
                raise ConfigError(f"{self.where}{name} is missing; a checkpoint's own config.json has it")
            return default
        return self._checked(name, value, kind)

    def take_list(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        """A list, each entry checked to be of `kind`; the default as in `take`."""
        values = self.take(name, list, default)
        if values is default:
            return default
        return [self._checked(f"{name}[{place}]", value, kind) for place, value in enumerate(values)]

    def _checked(self, name: str, value: Any, kind: type) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self.where}{name}={_short(value)} must be of type {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.where}{name}={value}: must be finite")
        return value

    def put(self, name: str, value: Any) -> None:
        """From now on the field reads as `value`: for a family that writes it in words of its own."""
        self.values = self.values | {name: value}
        self.left.add(name)

    def default(self, **values: Any) -> None:
        """What fields that the file lacks mean in this family, where decoder_config has it otherwise."""
        for name, value in values.items():
            if name not in self.values:
                self.put(name, value)

    def default_rope(self, kind: str, **scaling: float) -> None:
        """The same for rotations, in a file that says nothing of them but their base."""
        if self.values.keys().isdisjoint(("rope_scaling", "rope_parameters")):
            self.put("rope_scaling", {"rope_type": kind, **scaling})

    def rename(self, **names: str) -> None:
        """Fields that the family calls otherwise: its name = the one that decoder_config reads."""
        for theirs, ours in names.items():
            if theirs in self.values:
                self.put(ours, self.raw(theirs))

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive integer, or the default."""
        return self._positive(name, self.take(name, int, default))

    def positive(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive number, or the default."""
        return self._positive(name, self.take(name, float, default))

    def _positive(self, name: str, value: Any) -> Any:
        if value is not None and value <= 0:
            raise ConfigError(f"{self.where}{name}={value}: must be positive")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """An absent field, or one of the allowed values."""
        if name in self.values and self.raw(name) not in allowed:
            shown = ", ".join(repr(value) for value in allowed)
            raise ConfigError(
                f"{self.where}{name}={_short(self.values[name])} is not supported, only {shown};"
                " take another checkpoint of this model, or add the case to its family in jaxllm/models"
            )

    def ignore(self, *names: str) -> None:
        """Fields that have no influence in this family, whatever they say."""
        self.left.difference_update(names)

    def finish(self) -> None:
        """Every field must have been read by now."""
        for name in EXPECTED.keys() & self.left:
            self.expect(name, *EXPECTED[name])
        unknown = sorted(self.left - IGNORED)
        if unknown:
            shown = ", ".join(f"{name}={_short(self.values[name])}" for name in unknown)
            raise ConfigError(
                f"{self.where}unknown field{'s'[: len(unknown) > 1]} {shown}: may change what the model computes;"
                " remove what does not from the file, or teach jaxllm/models/config.py about it"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def decoder_config(
    fields: Fields,
    architecture: str,
    *,
    head_dim: int | None = None,
    eos_token_id: int | list[int] | None = None,
    tied: bool = False,
    rope_theta: float = 10000.0,
    partial_rotary_factor: float | None = None,
    interleaved: bool = False,
    **family: Any,
) -> ModelConfig:
    """The fields that Llama and its kin share; `family` gives the others.

    head_dim, eos_token_id, tied (tie_word_embeddings), rope_theta, partial_rotary_factor: the family's own where the
    file has no such field. interleaved: see Rope.
    """
    num_layers = fields.size("num_hidden_layers")
    hidden_size = fields.size("hidden_size")
    num_heads = fields.size("num_attention_heads")
    head_dim = fields.size("head_dim", head_dim or hidden_size // num_heads)
    positions = fields.size("max_position_embeddings")
    rope, max_position_embeddings = read_rope(fields, head_dim, positions, partial_rotary_factor, theta=rope_theta)
    shared: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": fields.size("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": max_position_embeddings,
        "norm_eps": fields.take("rms_norm_eps", float, 1e-6),
        "activation": fields.take("hidden_act", str, "silu"),
        "tie_word_embeddings": fields.take("tie_word_embeddings", bool, tied),
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "windows": (None,) * num_layers,
        "rope": replace(rope, interleaved=interleaved),
    }
    return ModelConfig(architecture=architecture, **(shared | common(fields, eos_token_id) | family))


def common(fields: Fields, eos_token_id: int | list[int] | None = None) -> dict[str, Any]:
    """The fields that every family has. eos_token_id: the family's own where the file has no such field."""
    eos = fields.raw("eos_token_id", eos_token_id)
    for name in ("architectures", "model_type"):  # read by the registry
        fields.raw(name)
    quantization = fields.raw("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ConfigError(
            f"{fields.where}quantization_config ({method}): quantised weights cannot be loaded;"
            " take the model's checkpoint in bfloat16 or float16"
        )
    dtype = fields.take("dtype", str, None) or fields.take("torch_dtype", str, "float32")
    fields.raw("torch_dtype")
    dtype = dtype.removeprefix("torch.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"{fields.where}dtype={dtype!r}: must be float32, bfloat16 or float16")
    return {
        "initializer_range": fields.take("initializer_range", float, 0.02),
        "dtype": dtype,
        "bos_token_id": fields.take("bos_token_id", int, None),
        "eos_token_ids": token_ids(eos, f"{fields.where}eos_token_id"),
    }


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """An id, a list of ids or null, as a tuple."""
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{name}={value!r} must be a token id, a list of them, or null")
    return ids


def read_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Per-layer windows as Qwen's files give them: use_sliding_window, max_window_layers, layer_types."""
    fields.default(sliding_window=4096)
    window = fields.size("sliding_window", None)
    first = fields.take("max_window_layers", int, 28)
    types = fields.take_list("layer_types", str, None)
    if not fields.take("use_sliding_window", bool, False):
        window = None
    if types is None:
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return _windows_of(fields, types, num_layers, window)


def read_layer_types(fields: Fields, num_layers: int, window: int | None, period: int) -> tuple[int | None, ...]:
    """Per-layer windows from layer_types; where there is none, every `period`-th layer sees all (0: no layer does)."""
    types = fields.take_list("layer_types", str, None)
    if types is None:
        return tuple(window if not period or (layer + 1) % period else None for layer in range(num_layers))
    return _windows_of(fields, types, num_layers, window)


def _windows_of(fields: Fields, types: list[Any], num_layers: int, window: int | None) -> tuple[int | None, ...]:
    known = {"full_attention": None, "sliding_attention": window}
    if len(types) != num_layers or not set(types) <= set(known):
        raise ConfigError(
            f"{fields.where}layer_types must hold {num_layers} times full_attention or sliding_attention,"
            f" not {_short(types)}"
        )
    return tuple(known[kind] for kind in types)


def read_rope(
    fields: Fields,
    head_dim: int,
    max_position_embeddings: int,
    partial_rotary_factor: float | None = None,
    *,
    theta: float = 10000.0,
    scaling: dict[str, Any] | None = None,
) -> tuple[Rope, int]:
    """Rotary embedding from `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (5).

    partial_rotary_factor: the turned share of head_dim where the file does not say; None in a family that turns all.
    theta: the base where the file does not say. scaling: in place of all that the file says.
    Returns it and the positions the checkpoint is made for, which YaRN extends.
    """
    if scaling is None:
        theta = fields.positive("rope_theta", theta)
        scaling = fields.take("rope_scaling", dict, {}) | fields.take("rope_parameters", dict, {})
        scaling = Fields(scaling, f"{fields.where}rope ").take("full_attention", dict, scaling)
    inner = Fields(scaling, f"{fields.where}rope ")
    theta = inner.positive("rope_theta", theta)
    old_name = inner.take("type", str, "default")
    kind = inner.take("rope_type", str, old_name)
    if partial_rotary_factor is None:
        inner.expect("partial_rotary_factor", 1, None)
    else:
        share = fields.take("partial_rotary_factor", float, partial_rotary_factor)
        share = inner.positive("partial_rotary_factor", share)
        if share > 1:
            raise ConfigError(f"{inner.where}partial_rotary_factor={share}: must be a share of head_dim, 1 at most")
        head_dim = int(head_dim * share)

    if kind == "default":
        rope = Rope(head_dim, theta)
    elif kind == "dynamic":  # differs beyond max_position_embeddings only, where nothing is served
        for name in (
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
        ):
            inner.raw(name)
        alpha = inner.take("alpha", float, 1.0)  # Hunyuan's: a larger base everywhere
        rope = Rope(head_dim, theta * alpha ** (head_dim / (head_dim - 2)) if alpha != 1.0 else theta)
    elif kind == "linear":
        rope = Rope(head_dim, theta, Linear(inner.take("factor", float)))
    elif kind == "llama3":
        original = inner.size("original_max_position_embeddings", max_position_embeddings)
        low, high = inner.take("low_freq_factor", float), inner.take("high_freq_factor", float)
        rope = Rope(head_dim, theta, Llama3(inner.take("factor", float), low, high, original))
    elif kind == "yarn":
        original = inner.size("original_max_position_embeddings", max_position_embeddings)
        factor = inner.take("factor", float, max_position_embeddings / original)
        rope = Rope(
            head_dim,
            theta,
            Yarn(
                factor,
                original,
                attention_factor=inner.take("attention_factor", float, _yarn_attention_factor(inner, factor)),
                beta_fast=inner.take("beta_fast", float, 32.0),
                beta_slow=inner.take("beta_slow", float, 1.0),
                truncate=inner.take("truncate", bool, True),
            ),
        )
        max_position_embeddings = max(max_position_embeddings, int(original * factor))
    elif kind in ("longrope", "su"):
        rope = Rope(head_dim, theta, _read_longrope(fields, inner, head_dim, max_position_embeddings))
    else:
        raise ConfigError(
            f"{inner.where}type {kind!r} is not supported; known: default, dynamic, linear, llama3, longrope, yarn."
            " Remove it from the file to serve within the original context"
        )
    inner.finish()
    return rope, max_position_embeddings


def with_local_rope[C: ModelConfig](config: C, fields: Fields, theta: float) -> C:
    """The configuration whose layers with a window turn by a rotation of their own, plain unless the file says.

    Only transformers 5 writes it: as `sliding_attention`, beside `full_attention`, in rope_parameters.
    """
    both = Fields(fields.take("rope_parameters", dict, {}), f"{fields.where}rope ")
    scaling = both.take("sliding_attention", dict, {})
    local, _ = read_rope(fields, config.head_dim, config.max_position_embeddings, theta=theta, scaling=scaling)
    return replace(config, layer_ropes=tuple(config.rope if window is None else local for window in config.windows))


def without_global_rope(config: ModelConfig) -> ModelConfig:
    """The configuration whose layers without a window know no positions."""
    return replace(config, layer_ropes=tuple(None if window is None else config.rope for window in config.windows))


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """What cos and sin are multiplied by where the file does not say: the paper's 0.1 ln(factor) + 1, or DeepSeek's."""
    growth = math.log(factor) if factor > 1 else 0.0
    mscale, mscale_all_dim = rope.take("mscale", float, None), rope.take("mscale_all_dim", float, None)
    if mscale and mscale_all_dim:
        return (0.1 * mscale * growth + 1.0) / (0.1 * mscale_all_dim * growth + 1.0)
    return 0.1 * growth + 1.0


def _read_longrope(fields: Fields, rope: Fields, head_dim: int, max_position_embeddings: int) -> LongRope:
    original = fields.size("original_max_position_embeddings", max_position_embeddings)
    original = rope.size("original_max_position_embeddings", original)
    factor = rope.take("factor", float, max_position_embeddings / original)
    warmer = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    sets = {}
    for name in ("short_factor", "long_factor"):
        values = rope.take_list(name, float)
        if len(values) != head_dim // 2 or min(values) <= 0:
            raise ConfigError(f"{rope.where}{name}={_short(values)} must hold {head_dim // 2} positive numbers")
        sets[name] = tuple(values)
    warmer = rope.take("long_mscale", float, warmer)  # Phi-MoE's name of the factor
    rope.expect("short_mscale", warmer)
    return LongRope(
        short=sets["short_factor"],
        long=sets["long_factor"],
        original_max_position_embeddings=original,
        context=max_position_embeddings,
        attention_factor=rope.take("attention_factor", float, warmer),
    )
