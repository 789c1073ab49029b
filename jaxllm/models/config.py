"""The numbers that a decoder is built from, and what families share in reading them from a config.json."""

from dataclasses import dataclass, replace
from typing import Any

from jaxllm.core import Pooling
from jaxllm.errors import ConfigError
from jaxllm.layers.mla import Latent
from jaxllm.layers.mlp import ACTIVATIONS
from jaxllm.layers.moe import Mixture
from jaxllm.layers.rope import Rope
from jaxllm.layers.ssm import StateSpace
from jaxllm.models.fields import Fields, shortened, token_ids
from jaxllm.models.rotations import read_rope


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
        embed_scale_rounded: the embedding's factor is rounded to the weights' type before it multiplies, not only what
            it makes, as Gemma was trained.
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
    embed_scale_rounded: bool = False
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
        if self.mixture is not None:
            self.mixture.check(self.activation)

    @property
    def out_std(self) -> float:
        """Standard deviation of random weights that write to the residual stream, smaller in deeper models (GPT-2)."""
        return self.initializer_range / (2 * self.num_layers) ** 0.5

    @property
    def output_size(self) -> int:
        """Numbers of a hidden state as the model returns it, which its head reads."""
        return self.hidden_size

    def within(self, context: int) -> "ModelConfig":
        """The configuration of a model that is run for texts of `context` positions at most."""
        ropes = self.layer_ropes and tuple(rope and rope.within(context) for rope in self.layer_ropes)
        return replace(self, rope=self.rope and self.rope.within(context), layer_ropes=ropes)


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


def read_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    """Per-layer windows as Qwen's files give them: use_sliding_window, max_window_layers, layer_types."""
    fields.default_nullable(sliding_window=4096)
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
            f" not {shortened(types)}"
        )
    return tuple(known[kind] for kind in types)


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
