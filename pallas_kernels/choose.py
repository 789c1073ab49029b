"""Which implementation of an operation serves a call, decided while tracing.

Implementations are tried in order; one that cannot serve raises NotImplementedError with its reason and the next is
taken. On an NVIDIA GPU of compute capability 8.0 or later the order is mosaic, triton, reference; elsewhere reference
alone. JAXLLM_KERNELS=reference keeps to the references; JAXLLM_KERNELS=triton or mosaic insists on these kernels: one
that declines is then an error (operations without one still take their reference).
"""

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax

BACKENDS = ("mosaic", "triton", "reference")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What serves an operation, and why each implementation before it declined."""

    operation: str
    backend: str
    declined: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        reasons = "".join(f"; not {backend}: {reason}" for backend, reason in self.declined)
        return f"{self.operation}: {self.backend}{reasons}"


_choices: dict[Choice, None] = {}
_forced: ContextVar[str | None] = ContextVar("jaxllm_kernels", default=None)


def choices() -> list[Choice]:
    """Every distinct choice made so far in this process, in order."""
    return list(_choices)


def load_runtimes() -> None:
    """Imports what kernels of compiled programs run on; tracing does so, loading a program from disk does not."""
    if _has_tensor_cores():
        for module in ("jaxlib.gpu_triton", "jax.experimental.mosaic.gpu"):
            importlib.import_module(module)


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Keeps to one backend for the calls traced inside, as JAXLLM_KERNELS does for a process."""
    token = _forced.set(_known(backend))
    try:
        yield
    finally:
        _forced.reset(token)


def run(operation: str, implementations: tuple[str, ...], *args: Any, **options: Any) -> Any:
    """Calls the first of an operation's implementations that can serve.

    operation: the folder's name and its function's; implementations: the backends the operation has.
    """
    declined: list[tuple[str, str]] = []
    order = [backend for backend in _order() if backend in implementations] or ["reference"]
    for backend in order:
        try:
            result = _load(operation, backend)(*args, **options)
        except NotImplementedError as error:
            declined.append((backend, str(error)))
            continue
        record(Choice(operation, backend, tuple(declined)))
        return result
    reasons = "; ".join(f"{backend}: {reason}" for backend, reason in declined)
    raise NotImplementedError(
        f"{operation}: no implementation serves this call ({reasons}); try JAXLLM_KERNELS=reference"
    )


def record(choice: Choice) -> None:
    """Notes and logs a choice; also one that was made when a program that is only loaded now was traced."""
    if choice not in _choices:
        _choices[choice] = None
        _logger.info("%s", choice)


def check_environment() -> None:
    """Raises ValueError where JAXLLM_KERNELS names no backend, which the first traced operation would else find."""
    if forced := os.environ.get("JAXLLM_KERNELS"):
        _known(forced)


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"JAXLLM_KERNELS={backend!r} is no backend; choose one of {', '.join(BACKENDS)}")
    return backend


def _order() -> tuple[str, ...]:
    forced = _forced.get() or os.environ.get("JAXLLM_KERNELS")
    if forced:
        return (_known(forced),)
    return BACKENDS if _has_tensor_cores() else ("reference",)


@functools.cache
def _has_tensor_cores() -> bool:
    device = jax.devices()[0]
    return device.platform == "gpu" and float(getattr(device, "compute_capability", "0")) >= 8.0


def _load(operation: str, backend: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(f"pallas_kernels.{operation}.{backend}")
    except ModuleNotFoundError as error:
        if error.name in ("triton", "jax_triton"):
            raise NotImplementedError(f"the package {error.name} is not installed") from error
        raise
    function: Callable[..., Any] = getattr(module, operation)
    return function
