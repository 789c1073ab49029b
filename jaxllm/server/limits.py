"""How much one request may ask for, over gRPC and HTTP alike."""

from jaxllm.config import ServerConfig
from jaxllm.errors import RequestError

MAX_STOP_LENGTH = 1024
"""Characters of a stop string at most: each is searched for in every sample, by a table of as many numbers."""


def check_inputs(config: ServerConfig, **counts: int) -> None:
    """RequestError for more than one request may hold. counts: how many each of its fields holds."""
    most = config.max_prompts
    for field, count in counts.items():
        if count > most:
            raise RequestError(
                f"{field} has {count} entries: at most {most} here (--max-prompts); send several requests", field
            )


def check_queue(max_requests: int, **counts: int) -> None:
    """RequestError for a request that is more of the engine's than can wait together: it would never fit."""
    for field, count in counts.items():
        if count > max_requests:
            raise RequestError(
                f"{field} has {count} entries, and {max_requests} requests can wait here (--max-queued); send "
                "several requests",
                field,
            )
