"""Notices compilation where there must be none: inside the serving path."""

import functools
import threading
from types import TracebackType
from typing import Any

import jax

from jaxllm.errors import CompileWhileServingError

_COMPILED = "/jax/core/compile/backend_compile_duration"
_seen = threading.local()


class CompileGuard:
    """`with guard:` raises CompileWhileServingError if this thread compiled anything inside, naming what.

    Other threads (a researcher's own JAX code beside the engine) are not watched.
    """

    def __init__(self) -> None:
        _listen()

    def __enter__(self) -> None:
        _seen.programs = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        programs, _seen.programs = _seen.programs, None
        if programs and error is None:
            raise CompileWhileServingError(
                f"compiled while serving: {', '.join(programs)}; the step used an operation outside the program table, "
                "which stalls every stream. Make it part of a program in jaxllm/runner/programs.py"
            )


@functools.cache
def _listen() -> None:
    """Once per process: JAX calls the listener in the thread that compiled."""

    def note(event: str, duration_secs: float, **details: Any) -> None:
        programs = getattr(_seen, "programs", None)
        if event == _COMPILED and programs is not None:
            programs.append(f"{details.get('fun_name', 'a program')} ({duration_secs:.2f} s)")

    jax.monitoring.register_event_duration_secs_listener(note)
