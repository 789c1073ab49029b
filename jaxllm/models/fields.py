"""The fields of a config.json, ticked off as they are read: each is consumed, ignored on purpose, or an error."""

import math
from typing import Any

from jaxllm.errors import ConfigError

_REQUIRED: Any = object()

_WITHOUT_INFLUENCE = """
    activation_dropout batch_size learning_rate resid_dropout _attn_implementation _attn_implementation_autoset
    _commit_hash _name_or_path attention_dropout auto_map chunk_size_feed_forward classifier_dropout dropout
    embd_pdrop embed_dropout embedding_dropout attn_pdrop resid_pdrop residual_dropout layerdrop
    gradient_checkpointing hidden_dropout hidden_dropout_prob attention_probs_dropout_prob id2label label2id
    is_decoder is_llama_config keys_to_ignore_at_inference max_tokenizer_truncation name_or_path num_labels
    _num_labels output_attentions
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
            raise ConfigError(f"{self.where}{name}={shortened(value)} must be of type {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.where}{name}={value}: must be finite")
        return value

    def put(self, name: str, value: Any) -> None:
        """From now on the field reads as `value`: for a family that writes it in words of its own."""
        self.values = self.values | {name: value}
        self.left.add(name)

    def default(self, **values: Any) -> None:
        """What fields that the file lacks or leaves null mean in this family, where decoder_config has it otherwise."""
        for name, value in values.items():
            if self.values.get(name) is None:
                self.put(name, value)

    def default_nullable(self, **values: Any) -> None:
        """The same for fields whose null says that there is none."""
        self.default(**{name: value for name, value in values.items() if name not in self.values})

    def default_rope(self, kind: str, **scaling: float) -> None:
        """What rotations are in this family, where the file says nothing of them but their base."""
        if self.values.keys().isdisjoint(("rope_scaling", "rope_parameters")):
            self.put("rope_scaling", {"rope_type": kind, **scaling})

    def rename(self, **names: str) -> None:
        """Fields that the family calls otherwise: its name = the one that decoder_config reads."""
        for theirs, ours in names.items():
            if theirs in self.values:
                self.put(ours, self.raw(theirs))

    def size(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive integer, or the default."""
        value = self._positive(name, self.take(name, int, default))
        if value is not None and value >= 1 << 31:
            raise ConfigError(f"{self.where}{name}={shortened(value)}: must be below 2**31")
        return value

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
                f"{self.where}{name}={shortened(self.values[name])} is not supported, only {shown};"
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
            shown = ", ".join(f"{name}={shortened(self.values[name])}" for name in unknown)
            raise ConfigError(
                f"{self.where}unknown field{'s'[: len(unknown) > 1]} {shown}: may change what the model computes;"
                " remove what does not from the file, or teach jaxllm/models/fields.py about it"
            )


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """An id, a list of ids or null, as a tuple."""
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ConfigError(f"{name}={value!r} must be a token id, a list of them, or null")
    return ids
