"""Checkpoints of models that generate nothing, with a tokenizer, and what transformers made of their sequences."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from words import text_of, write_tokenizer

REFERENCE = Path(__file__).parent / "models" / "reference_pooling"


@dataclass(frozen=True)
class Recorded:
    """A checkpoint's folder, and of each recorded sequence its ids, its segments, its hidden states [length, E] and
    what the head made of it, [D] or [length, D]; without a head the first token's hidden state."""

    folder: Path
    ids: list[list[int]]
    types: list[list[int]]
    hidden: list[np.ndarray]
    outputs: list[np.ndarray]

    @property
    def texts(self) -> list[str]:
        return [text_of(ids) for ids in self.ids]

    def pair(self, index: int) -> tuple[str, str]:
        """A sequence as the two texts that its segments part it into."""
        first = self.types[index].count(0)
        return text_of(self.ids[index][:first]), text_of(self.ids[index][first:])


def checkpoint(case: str, folder: Path) -> Recorded:
    """The recorded case, copied into a new folder; its tokenizer adds no special tokens."""
    shutil.copytree(REFERENCE / case, folder)
    write_tokenizer(folder, 97)
    with np.load(folder / "reference.npz") as recorded:
        borders = np.cumsum(recorded["lengths"])[:-1]
        ids, types, hidden = (np.split(recorded[name], borders) for name in ("ids", "types", "hidden"))
        outputs = [states[0] for states in hidden]
        if "outputs" in recorded:
            of_tokens = len(recorded["outputs"]) == sum(recorded["lengths"])
            outputs = np.split(recorded["outputs"], borders) if of_tokens else list(recorded["outputs"])
    return Recorded(folder, [x.tolist() for x in ids], [x.tolist() for x in types], hidden, outputs)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    grown = np.exp(x - x.max())
    return grown / grown.sum()


def assert_close(actual: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
