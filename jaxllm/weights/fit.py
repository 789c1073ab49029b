"""Whether a checkpoint's tensors and a model's parameters are the same, before anything is read."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jaxllm.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass
class Fit:
    """Gathers every disagreement, so that one error can name them all."""

    path: Path
    model: str
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)

    def compare(self, name: str, shape: Iterable[int], expected: Iterable[int]) -> None:
        shape, expected = tuple(shape), tuple(expected)
        if shape != expected:
            self.unfit.append(f"{name} is {list(shape)} where {list(expected)} is expected")

    def check(self) -> None:
        """CheckpointError that names every tensor at fault; nothing if there is none."""
        faults = []
        if self.missing:
            hint = ""
            if any(name.endswith("lm_head.weight") for name in self.missing):
                hint = " (if its head is the embedding, config.json must say tie_word_embeddings: true)"
            faults.append(f"missing: {', '.join(self.missing)}{hint}")
        if self.unused:
            faults.append(f"unused: {', '.join(sorted(self.unused))}")
        if self.unfit:
            faults.append(f"wrong shape or type: {', '.join(self.unfit)}")
        if faults:
            raise CheckpointError(
                f"{self.path} does not fit {self.model} as its config.json describes it; {'; '.join(faults)}."
                " Is the download complete, and is the config.json of the same checkpoint?"
            )
