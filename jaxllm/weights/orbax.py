"""Converted checkpoints: the model's own parameters, already fused and cast, in an Orbax directory.

Orbax is imported where it is needed: it takes half a second, which a start from other files need not spend.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxllm.errors import CheckpointError, ConfigError
from jaxllm.layers.parameter import Parameter, parameters
from jaxllm.weights.fit import Fit
from jaxllm.weights.sentence_transformers import module_files

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

FOLDER = "orbax"
_COPIED = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".md"}
_TEMPLATES = "additional_chat_templates/*.jinja"  # where transformers keeps a tokenizer's chat templates but the first


def is_converted(directory: Path) -> bool:
    return (directory / FOLDER).is_dir()


def save_orbax(model: Any, hf_config: dict[str, Any], source_path: str | Path, target_path: str | Path) -> None:
    """Writes the loaded model to a new directory, with its config.json and what stands beside it: tokenizer, templates.

    hf_config: the content of the source's config.json; its dtype becomes the model's.
    """
    import orbax.checkpoint as ocp

    source, target = Path(source_path), Path(target_path).expanduser().absolute()
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target}: is not empty; name a new directory")
    target.mkdir(parents=True, exist_ok=True)
    arrays = {name: parameter.get_value() for name, parameter in parameters(model).items()}
    with _checkpointer() as checkpointer:
        checkpointer.save(target / FOLDER, args=ocp.args.PyTreeSave(arrays))
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COPIED and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
    for path in (*module_files(source), *sorted(source.glob(_TEMPLATES))):
        (target / path.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(path, target / path.relative_to(source))
    dtype = str(next(iter(arrays.values())).dtype)
    config = {name: value for name, value in hf_config.items() if name != "torch_dtype"} | {"dtype": dtype}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def read(
    model: Any, directory: Path, wanted: dict[str, Parameter], dtypes: dict[str, jnp.dtype]
) -> Iterator[tuple[str, jax.Array]]:
    """The parameters by name, cast to their dtypes, on the default device."""
    import orbax.checkpoint as ocp

    if not is_converted(directory):
        raise CheckpointError(f"{directory}: no folder {FOLDER!r}; `jaxllm convert` writes one")
    folder = (directory / FOLDER).absolute()
    device = jax.sharding.SingleDeviceSharding(jnp.zeros(()).device)
    with _checkpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(folder).item_metadata
        except Exception as error:  # Orbax raises whatever its storage layers raise
            raise _damaged(folder, str(error)) from error
        if metadata is None:
            raise _damaged(folder, "it does not say which parameters it holds")
        stored = metadata.tree
        fit = Fit(folder, type(model).__name__)
        fit.missing += [name for name in wanted if name not in stored]
        fit.unused += [name for name in stored if name not in wanted and not model.ignores_parameter(name)]
        for name in wanted.keys() & stored.keys():
            fit.compare(name, stored[name].shape, wanted[name].shape)
        fit.check()
        target = {
            name: jax.ShapeDtypeStruct(parameter.shape, dtypes[name], sharding=device)
            for name, parameter in wanted.items()
        }
        try:
            arguments = ocp.checkpoint_utils.construct_restore_args(target)
            restore = ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=True)
            arrays = checkpointer.restore(folder, args=restore)
        except Exception as error:
            raise _damaged(folder, str(error)) from error
    yield from arrays.items()


def _checkpointer() -> "ocp.Checkpointer":
    """Uncompressed, since weights hardly shrink and a disk is faster than zstd; a few GB on the host at once."""
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False, restore_concurrent_gb=4))


def _damaged(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{folder} is incomplete or damaged: {why}; run `jaxllm convert` again")
