"""What a request's owner is told, and the log probabilities that come with it."""

import numpy as np

from jaxllm.core import Delta, Logprobs, Request, Row


def delta_of(request: Request, now: float, tokens: list[int] | None = None) -> Delta:
    """What a request's owner is told at this moment: these new tokens, and the end, if it has ended."""
    return Delta(  # by position, in the order of its fields: half the time of keywords, once per row and step
        request.request_id,
        tokens or [],
        None,
        None,
        request.finish,
        None,
        None,
        len(request.source) + len(request.prompt),
        len(request.output),
        request.num_cached,
        request.arrival,
        request.first_scheduled,
        request.first_token,
        now if request.finish is not None else None,
    )


def collect_prompt_logprobs(request: Request, row: Row, chunk: Logprobs) -> None:
    """Keeps what is new of a chunk, whose first entry is for position row.start + 1.

    After a preemption chunks come again; behind the prompt's end the entries are for drawn tokens.
    """
    if not request.output:
        collected = sum(len(part.token) for part in request.prompt_logprobs)
        request.prompt_logprobs.append(
            slice_logprobs(chunk, collected - row.start, len(request.prompt) - 1 - row.start)
        )


def slice_logprobs(logprobs: Logprobs, start: int, stop: int) -> Logprobs:
    part = slice(start, stop)
    return Logprobs(logprobs.token[part], logprobs.rank[part], logprobs.top_ids[part], logprobs.top[part])


def concatenate(parts: list[Logprobs]) -> Logprobs:
    return Logprobs(
        token=np.concatenate([part.token for part in parts]),
        rank=np.concatenate([part.rank for part in parts]),
        top_ids=np.concatenate([part.top_ids for part in parts]),
        top=np.concatenate([part.top for part in parts]),
    )
