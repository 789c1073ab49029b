"""What one case of the parity tests is made from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

SMALL = {"vocab_size": 97, "intermediate_size": 40, "num_hidden_layers": 2, "max_position_embeddings": 64}

POOLING_CLASSES = (
    "AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForMaskedLM",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A tiny model and how its checkpoint is written.

    config: of transformers' class for `model_type`. auto_class: which of its heads; AutoModel is none.
    old_names: config.json as transformers 4 wrote it.
    adapt: changes the model into one that transformers has no class for.
    convert: the tensors as the class names and shapes them -> as the published checkpoints do.
    written: fields of config.json in place of the class's own; None leaves one out.
    """

    name: str
    model_type: str
    config: dict[str, Any]
    auto_class: str = "AutoModelForCausalLM"
    dtype: torch.dtype = torch.float32
    old_names: bool = False
    drop_prefix: str = ""
    extra_tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    adapt: Callable[[torch.nn.Module], object] = lambda model: None
    convert: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict
    written: dict[str, Any] = field(default_factory=dict)

    @property
    def pools(self) -> bool:
        """The model generates nothing: hidden states and what its head makes of them are recorded."""
        return self.auto_class in POOLING_CLASSES
