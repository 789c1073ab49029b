"""Runs Triton kernels without a GPU: Triton's interpreter over numpy memory, in place of jax_triton.triton_call."""

import importlib.util
import inspect
import os
from typing import Any

# Read when a kernel is defined, so before any kernel is imported.
os.environ["TRITON_INTERPRET"] = "1"

import jax
import ml_dtypes
import numpy as np
import pytest


class _Memory:
    """A numpy array with the face of a tensor that Triton's interpreter looks for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def dtype(self) -> Any:
        import triton.language as tl

        return getattr(tl, {"bool": "int1"}.get(self.array.dtype.name, self.array.dtype.name))

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> "_Memory":
        return self

    cpu = untyped_storage

    def copy_(self, other: "_Memory") -> None:
        assert other.array is self.array

    def new_empty(self, *_: Any, **__: Any) -> "_Memory":
        return _Memory(self.array)

    def set_(self, storage: "_Memory", *_: Any) -> None:
        self.array = storage.array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides


def _base(arg: Any) -> Any:
    """Where an operand lies: what a tensor descriptor describes, or the operand itself."""
    import jax_triton

    return arg.base if isinstance(arg, jax_triton.TensorDescriptor) else arg


def _operand(arg: Any, array: np.ndarray) -> Any:
    """What the interpreter takes for an operand that lies in `array`."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    if _base(arg) is not arg:
        return TensorDescriptor(_Memory(array), list(arg.shape), list(arg.strides), list(arg.block_shape))
    return _Memory(array)


def _interpret(*args: Any, kernel: Any, out_type: Any, grid: tuple[int, ...], **options: Any) -> Any:
    """Stands in for jax_triton.triton_call outside jit; outputs start as NaN, as fresh device memory might.

    Operands other than references must end as they began: XLA gives them to other kernels too.
    """
    refs = [arg for arg in args if isinstance(arg, jax.Ref)]
    bases = [_base(arg) for arg in args]
    operands = [np.array(base[...] if isinstance(base, jax.Ref) else base) for base in bases]
    leaves, tree = jax.tree.flatten(out_type)
    outputs = [np.full(leaf.shape, np.nan if leaf.dtype.kind in "fV" else -1, leaf.dtype) for leaf in leaves]
    known = inspect.signature(kernel.fn).parameters
    constants = {name: value for name, value in options.items() if name in known}
    kernel[grid](*map(_operand, args, operands), *map(_Memory, outputs), **constants)
    for base, operand in zip(bases, operands, strict=True):
        assert isinstance(base, jax.Ref) or np.array(base).tobytes() == operand.tobytes()
    for ref in refs:
        ref[...] = jax.numpy.asarray(operands[next(i for i, arg in enumerate(args) if arg is ref)])
    return tree.unflatten([jax.numpy.asarray(output) for output in outputs])


def _reduce_by_halves(reduction: Any, operands: tuple[Any, ...]) -> list[Any]:
    """What the interpreter does number by number: minutes, for kernels that reduce several values at once."""
    values = [(operand.handle.data, operand.dtype) for operand in operands]
    assert reduction.axis is not None
    assert not reduction.keep_dims
    while (length := values[0][0].shape[reduction.axis]) > 1:
        assert length % 2 == 0
        halves = [
            [reduction.to_tensor(half, dtype) for half in np.split(data, 2, reduction.axis)] for data, dtype in values
        ]
        lower, upper = zip(*halves, strict=True)
        values = [(result.handle.data, result.dtype) for result in reduction.combine_fn.fn(*lower, *upper)]
    return [reduction.to_tensor(np.squeeze(data, reduction.axis)[()], dtype) for data, dtype in values]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the test, Triton kernels run here, interpreted."""
    if importlib.util.find_spec("jax_triton") is None:
        pytest.skip("triton and jax-triton are not installed (extra `test`)")
    import jax_triton
    from triton.runtime.interpreter import ReduceOps

    monkeypatch.setattr(jax_triton, "triton_call", _interpret)
    monkeypatch.setattr(ReduceOps, "generic_reduce", _reduce_by_halves)


assert ml_dtypes.bfloat16  # numpy learns the name bfloat16 from here
