"""What the files of sentence-transformers beside a checkpoint say about pooling its hidden states.

modules.json lists the steps; each has a folder with a config.json. Source: the library's models.Pooling.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxllm.errors import ConfigError
from jaxllm.weights.directory import read_object

_MODES: dict[str, Literal["cls", "mean", "last"]] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_TRANSFORMER = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Of which the library reads the first that is there."""
_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True)
class SentenceTransformer:
    """sequence, lower_case: see Pooling. normalize: vectors have unit length. max_seq_length: tokens of a text, if it
    says."""

    sequence: Literal["cls", "mean", "last"]
    normalize: bool
    max_seq_length: int | None
    lower_case: bool = False


def module_files(directory: Path) -> list[Path]:
    """The files in folders of their own that say how a checkpoint's hidden states are pooled; none where none do."""
    return sorted(directory.glob("*/config.json")) if (directory / "modules.json").is_file() else []


def read_sentence_transformer(directory: Path) -> SentenceTransformer | None:
    """None where the checkpoint is not of that library. ConfigError for a step that nothing here computes."""
    path = directory / "modules.json"
    if not path.is_file():
        return None
    try:
        modules = json.loads(path.read_text("utf-8"))
        steps = [(module["type"].rpartition(".")[2], directory / module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not a list of steps with type and path ({error!r}); fetch it again") from error
    kinds = [kind for kind, _ in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(
            f"{path}: the steps {', '.join(kinds)} are not supported, only Transformer, Pooling and Normalize;"
            " serve another checkpoint, or remove the file to pool as its family does"
        )
    name = next((name for name in _TRANSFORMER if (directory / name).is_file()), _TRANSFORMER[0])
    inner = read_object(directory / name) or {}
    longest = inner.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise ConfigError(f"{directory}: {name}: max_seq_length={longest!r} must be positive, or null")
    return SentenceTransformer(
        sequence=_read_mode(steps[1][1] / "config.json"),
        normalize="Normalize" in kinds,
        max_seq_length=longest,
        lower_case=bool(inner.get("do_lower_case", False)),
    )


def _read_mode(path: Path) -> Literal["cls", "mean", "last"]:
    config = read_object(path)
    if config is None:
        raise ConfigError(f"{path}: not there, though modules.json names its folder; fetch the file")
    prefix = "pooling_mode_"
    modes = [str(config["pooling_mode"])] if "pooling_mode" in config else []
    modes += [
        _FLAGS.get(name, name.removeprefix(prefix).removesuffix("_tokens"))
        for name, chosen in config.items()
        if name.startswith(prefix) and chosen
    ]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise ConfigError(f"{path}: pooling by {' and '.join(modes)} is not supported; only by {', '.join(_MODES)}")
    if not config.get("include_prompt", True):
        raise ConfigError(f"{path}: include_prompt=false is not supported: the whole text is pooled")
    return _MODES[modes[0]]
