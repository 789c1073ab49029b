"""What every model here is to the rest: a configuration, parameters, and the tensors that those come from."""

import re
from collections.abc import Mapping
from typing import ClassVar

from flax import nnx

from jaxllm.layers.parameter import Dtype, Source
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields


class Model(nnx.Module):
    """Base of the models of every kind.

    Class attributes:
        checkpoint_names: our parameter's path (`*` for a layer's index) -> the checkpoint's tensors.
        checkpoint_prefix: what some checkpoints leave out at the front of every name.
        checkpoint_aliases: parts of names -> what some checkpoints write in their place.
        checkpoint_optional: our parameters that start as initialised where the checkpoint leaves them out.
        checkpoint_ignored: regular expressions of tensors that some checkpoints hold and no model needs.
    """

    checkpoint_names: ClassVar[Mapping[str, Source]] = {}
    checkpoint_prefix: ClassVar[str] = ""
    checkpoint_aliases: ClassVar[Mapping[str, str]] = {}
    checkpoint_optional: ClassVar[frozenset[str]] = frozenset()
    checkpoint_ignored: ClassVar[tuple[str, ...]] = ()

    config: ModelConfig

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        """Reads the family's config.json."""
        raise NotImplementedError(f"{cls.__name__} must say how it reads a config.json")

    def __init__(self, config: ModelConfig, dtype: Dtype):
        """Builds the model with abstract parameters of `dtype`."""
        self.config = config

    def ignores_tensor(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor although the model has no use for it."""
        return any(re.search(pattern, name) for pattern in self.checkpoint_ignored)

    def ignores_parameter(self, path: str) -> bool:
        """The same of a parameter in a converted checkpoint, whose model may have been made for something else."""
        return False

    def repeats(self, name: str) -> str | None:
        """The parameter whose numbers a checkpoint's tensor must be, as it is used in its place; None for any other."""
        return None
