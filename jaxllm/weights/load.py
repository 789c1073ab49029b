"""Fills a model's abstract parameters with arrays: from safetensors, from Orbax, or with random numbers."""

import functools
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import LoadFormat
from jaxllm.errors import CheckpointError
from jaxllm.layers.parameter import Dtype, Layout, Parameter, Shape, Source, parameters
from jaxllm.weights import orbax
from jaxllm.weights.directory import resolve_model_path
from jaxllm.weights.fit import Fit
from jaxllm.weights.safetensors import TYPES, Tensors

Progress = Callable[[int, int, str], None]
"""Called with (parameters done, parameters in all, "loading weights")."""

_STAGED_BYTES = 64 << 20  # of experts' weights on their way to their place, of tensors that are compared


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
    """Compiles all forms of parameters at once: a decoder has a handful, each of which takes a second to compile."""
    root = jax.random.key(seed)
    forms = {name: (parameter.init, parameter.shape, dtypes[name]) for name, parameter in wanted.items()}
    with ThreadPoolExecutor(os.cpu_count(), "draw") as threads:
        compiling = {form: threads.submit(_initialise.lower(root, *form).compile) for form in set(forms.values())}
        for name, form in forms.items():
            key = jax.random.fold_in(root, np.uint32(zlib.crc32(name.encode())))
            yield name, compiling[form].result()(key)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _initialise(key: jax.Array, init: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    result: jax.Array = init(key, shape, dtype)
    return result


@dataclass(frozen=True)
class Reading:
    """The tensors that a parameter is made of.

    parts: for each of the parameter's parts one tensor, or one for each index of the parameter's first axis.
    """

    parts: tuple[tuple[str, ...], ...]
    layout: Layout
    stacked: bool


def _read_safetensors(
    model: Any, directory: Path, wanted: dict[str, Parameter], dtypes: dict[str, jnp.dtype]
) -> Iterator[tuple[str, jax.Array]]:
    tensors = Tensors(directory)
    plan = match(model, tensors, wanted, directory)
    for name in tensors:
        repeated = model.repeats(name)
        if repeated is not None:
            _check_repeated(tensors, name, plan[repeated].parts[0][0], dtypes[repeated], directory)

    def arrays() -> Iterator[tuple[str, jax.Array]]:
        yield from _draw({name: wanted[name] for name in wanted.keys() - plan.keys()}, dtypes, seed=0)
        for name, reading in plan.items():
            shape, dtype = wanted[name].shape, dtypes[name]
            if reading.stacked:
                yield name, _read_stacked(tensors, reading, wanted[name], dtype)
            else:
                parts = tuple(_put(tensors, part) for (part,) in reading.parts)
                yield name, _fuse(parts, _part_shapes(shape, wanted[name]), reading.layout, dtype)

    return arrays()


def _check_repeated(tensors: Tensors, name: str, used: str, dtype: jnp.dtype, directory: Path) -> None:
    """CheckpointError unless the tensor is the one that is used in its place, as numbers of `dtype`."""
    if not _same(tensors, name, used, dtype):
        raise CheckpointError(
            f"{directory}: {name} differs from {used}, which config.json says to use as the head too: by"
            " tie_word_embeddings, true in some families where the file has none. Set it to false in config.json to"
            f" load {name}, or remove {name} from the checkpoint if it is not the model's"
        )


def _same(tensors: Tensors, left: str, right: str, dtype: jnp.dtype) -> bool:
    """Whether two tensors hold the same numbers of `dtype`; reads some rows at a time."""
    shape, kind = tensors.describe(left)
    if tensors.describe(right)[0] != shape or kind not in TYPES:
        return False
    step = max(1, _STAGED_BYTES // (math.prod(shape[1:]) * np.dtype(np.float32).itemsize))
    for first in range(0, shape[0], step):
        one, other = (tensors.rows(name, first, min(first + step, shape[0])) for name in (left, right))
        if not np.array_equal(one.astype(dtype, copy=False), other.astype(dtype, copy=False)):
            return False
    return True


def _read_stacked(tensors: Tensors, reading: Reading, parameter: Parameter, dtype: jnp.dtype) -> jax.Array:
    """Fills the parameter some experts at a time, so that the device never holds it twice."""
    shape = parameter.shape
    stack = jnp.zeros(shape, dtype)
    step = max(1, _STAGED_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    staged: list[tuple[jax.Array, ...]] = []
    for first in range(0, shape[0], step):
        before = staged
        experts = zip(*(part[first : first + step] for part in reading.parts), strict=True)
        staged = [tuple(_put(tensors, name) for name in names) for names in experts]
        stack = _place(stack, tuple(staged), first, _part_shapes(shape[1:], parameter), reading.layout)
        jax.block_until_ready(before)  # reading overlaps with one transfer, and piles up no more than that
    return stack


def _put(tensors: Tensors, name: str) -> jax.Array:
    return jax.device_put(tensors.read(name), may_alias=False)


def _part_shapes(shape: Shape, parameter: Parameter) -> tuple[Shape, ...]:
    """The shape of each of the parameter's parts; shape: the parameter's own or one expert's."""
    return tuple((*shape[:-1], size) for size in parameter.parts or shape[-1:])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _fuse(parts: tuple[jax.Array, ...], shapes: tuple[Shape, ...], layout: Layout, dtype: jnp.dtype) -> jax.Array:
    if len(parts) < len(shapes):  # the checkpoint has them fused
        shapes = ((*shapes[0][:-1], sum(shape[-1] for shape in shapes)),)
    cast = [layout.restore(part, shape).astype(dtype) for part, shape in zip(parts, shapes, strict=True)]
    return cast[0] if len(cast) == 1 else jnp.concatenate(cast, axis=-1)


@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=0)
def _place(
    stack: jax.Array,
    experts: tuple[tuple[jax.Array, ...], ...],
    first: int,
    shapes: tuple[Shape, ...],
    layout: Layout,
) -> jax.Array:
    rows = jnp.stack([_fuse(parts, shapes, layout, stack.dtype) for parts in experts])
    return jax.lax.dynamic_update_slice_in_dim(stack, rows, first, axis=0)


def match(model: Any, tensors: Tensors, wanted: dict[str, Parameter], directory: Path) -> dict[str, Reading]:
    """The tensors each parameter is made of, those apart that the checkpoint may leave out and does; reads headers."""
    fit = Fit(directory, type(model).__name__)
    used: set[str] = set()
    plan = {}
    for name, parameter in wanted.items():
        source = source_of(model, name)
        if name in model.checkpoint_optional and not any(part in tensors for part in source.names):
            continue
        parts = []
        sizes = parameter.parts if len(source.names) > 1 else parameter.shape[-1:]
        stacked = any("*" in part for part in source.names)
        for part, size in zip(source.names, sizes, strict=True):
            indices = range(parameter.shape[0]) if stacked else range(1)
            shape = source.layout.stored((*parameter.shape[stacked:-1], size))
            parts.append(tuple(_find(model, tensors, part.replace("*", str(i)), shape, fit) for i in indices))
            used.update(parts[-1])
        plan[name] = Reading(tuple(parts), source.layout, stacked)
    fit.unused += [name for name in tensors if name not in used and not model.ignores_tensor(name)]
    fit.check()
    return plan


def _find(model: Any, tensors: Tensors, name: str, expected: Shape, fit: Fit) -> str:
    """The tensor's name in the checkpoint, by an alias or without the model's prefix; disagreements go to `fit`."""
    names = [name, *(name.replace(part, alias) for part, alias in model.checkpoint_aliases.items() if part in name)]
    candidates = [*names, *(alias.removeprefix(model.checkpoint_prefix) for alias in names)]
    found = next((candidate for candidate in candidates if candidate in tensors), None)
    if found is None:
        fit.missing.append(name)
        return name
    shape, kind = tensors.describe(found)
    fit.compare(found, shape, expected)
    if kind not in TYPES:
        fit.unfit.append(f"{found} is of type {kind} where one of {', '.join(TYPES)} is expected")
    return found


def source_of(model: Any, name: str) -> Source:
    """The row of the family's table for our parameter, with its layer's index filled in; a `*` left is an expert's."""
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
    return Source(tuple(part.replace("*", index[1], 1) for part in source.names), source.layout)
