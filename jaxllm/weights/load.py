"""Fills a model's abstract parameters with arrays: from safetensors, from Orbax, or with random numbers."""

import functools
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import LoadFormat
from jaxllm.errors import CheckpointError
from jaxllm.layers.parameter import Dtype, Parameter, Source, parameters
from jaxllm.weights import orbax
from jaxllm.weights.directory import resolve_model_path
from jaxllm.weights.fit import Fit
from jaxllm.weights.safetensors import TYPES, Tensors

Progress = Callable[[int, int, str], None]
"""Called with (parameters done, parameters in all, "loading weights")."""


def load[Model: Any](
    model: Model,
    path: str | Path,
    *,
    load_format: LoadFormat = "auto",
    dtype: Dtype = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Model:
    """Fills `model`, as Architecture.build made it, with arrays on the default device, and returns it.

    load_format: auto takes Orbax where `jaxllm convert` wrote it, else safetensors; dummy draws random weights, which
        depend on `seed` and each parameter's path alone, and needs no directory.
    dtype: the arrays' type; as the model was built by default.

    Raises CheckpointError naming every missing, unused and wrongly shaped tensor.
    """
    wanted = parameters(model)
    dtypes = {name: jnp.dtype(dtype or parameter.dtype) for name, parameter in wanted.items()}
    if load_format == "dummy":
        arrays = _draw(wanted, dtypes, seed)
    else:
        directory = resolve_model_path(path)
        if load_format == "auto":
            load_format = "orbax" if orbax.is_converted(directory) else "safetensors"
        read = orbax.read if load_format == "orbax" else _read_safetensors
        arrays = read(model, directory, wanted, dtypes)

    previous: jax.Array | None = None
    for done, (name, array) in enumerate(arrays, 1):
        wanted[name].set_value(array)
        if previous is not None:  # reading overlaps with the transfer of one parameter, and piles up no more than that
            previous.block_until_ready()
        previous = array
        if progress is not None:
            progress(done, len(wanted), "loading weights")
    jax.block_until_ready([parameter.get_value() for parameter in wanted.values()])
    return model


def _draw(wanted: dict[str, Parameter], dtypes: dict[str, jnp.dtype], seed: int) -> Iterator[tuple[str, jax.Array]]:
    root = jax.random.key(seed)
    for name, parameter in wanted.items():
        key = jax.random.fold_in(root, np.uint32(zlib.crc32(name.encode())))
        yield name, _initialise(key, parameter.init, parameter.shape, dtypes[name])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _initialise(key: jax.Array, init: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    result: jax.Array = init(key, shape, dtype)
    return result


def _read_safetensors(
    model: Any, directory: Path, wanted: dict[str, Parameter], dtypes: dict[str, jnp.dtype]
) -> Iterator[tuple[str, jax.Array]]:
    tensors = Tensors(directory)
    plan = match(model, tensors, wanted, directory)

    def arrays() -> Iterator[tuple[str, jax.Array]]:
        for name, (names, transposed) in plan.items():
            parts = tuple(jax.device_put(tensors.read(part), may_alias=False) for part in names)
            yield name, _fuse(parts, transposed, dtypes[name])

    return arrays()


@functools.partial(jax.jit, static_argnums=(1, 2))
def _fuse(parts: tuple[jax.Array, ...], transposed: bool, dtype: jnp.dtype) -> jax.Array:
    cast = [(part.T if transposed else part).astype(dtype) for part in parts]
    return cast[0] if len(cast) == 1 else jnp.concatenate(cast, axis=-1)


def match(
    model: Any, tensors: Tensors, wanted: dict[str, Parameter], directory: Path
) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The tensors each parameter is made of, and whether they are to be transposed; only headers are read."""
    fit = Fit(directory, type(model).__name__)
    used: set[str] = set()
    plan = {}
    for name, parameter in wanted.items():
        source = source_of(model, name)
        names = []
        sizes = parameter.parts if len(source.names) > 1 else parameter.shape[-1:]
        for part, size in zip(source.names, sizes, strict=True):
            bare = part.removeprefix(model.checkpoint_prefix)
            found = part if part in tensors or bare not in tensors else bare
            if found not in tensors:
                fit.missing.append(part)
                continue
            shape, kind = tensors.describe(found)
            expected = (*parameter.shape[:-1], size)
            fit.compare(found, shape, expected[::-1] if source.transposed else expected)
            if kind not in TYPES:
                fit.unfit.append(f"{found} is of type {kind} where one of {', '.join(TYPES)} is expected")
            names.append(found)
        used.update(names)
        plan[name] = (tuple(names), source.transposed)
    fit.unused += [name for name in tensors if name not in used and not model.ignores_tensor(name)]
    fit.check()
    return plan


def source_of(model: Any, name: str) -> Source:
    """The row of the family's table for our parameter, with its layer's index filled in."""
    index = re.search(r"\.(\d+)\.", name)
    row = re.sub(r"\.\d+\.", ".*.", name, count=1)
    if row not in model.checkpoint_names:
        raise CheckpointError(
            f"{type(model).__name__}.checkpoint_names has no row {row!r}: add one that says which tensors of the"
            " checkpoint the parameter is made of"
        )
    source: Source = model.checkpoint_names[row]
    if index is None:
        return source
    return Source(tuple(part.replace("*", index[1]) for part in source.names), source.transposed)
