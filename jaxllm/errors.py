"""Errors a person can act on: each message says what is wrong, why, and what to do next."""


class JaxllmError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(JaxllmError, ValueError):
    """A configuration (flag, keyword, config.json field) cannot be honoured."""


class RequestError(JaxllmError, ValueError):
    """A request is invalid; it fails alone and the engine goes on. `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class ConstraintError(JaxllmError):
    """A request's answer cannot go on within its grammar, or not at a bearable cost; it fails alone."""


class QueueFullError(JaxllmError):
    """The waiting queue is at its bound; try again later or raise --max-queued."""


class CheckpointError(JaxllmError, ValueError):
    """A checkpoint is unreadable, incomplete, or does not fit the model; names the tensors at fault."""


class UnknownModelError(ConfigError):
    """The architecture is not in the registry; the message names the nearest that is."""


class CompileWhileServingError(JaxllmError, RuntimeError):
    """A program outside the closed table was asked for while serving; the message names the cause."""


class EngineDeadError(JaxllmError, RuntimeError):
    """The engine loop ended on an internal error; no request can be answered until a restart."""
