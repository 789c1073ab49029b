"""When a request ends by its tokens. Stop strings need text and are server/text's part."""

from jaxllm.core import FinishReason, Request


def accept(request: Request, drawn: list[int]) -> tuple[list[int], FinishReason | None]:
    """The drawn tokens that belong to the request, and why it ends with the last of them, if it does.

    A token of `stop_ids` ends it (and is part of the output) unless the output, that token included, is
    shorter than min_tokens; `max_total` tokens of prompt and output end it. What was drawn behind the end is
    dropped: the device checks a subset of this, so it may have drawn too many, never too few. A token below 0 is none:
    every one was forbidden there.
    """
    known = len(request.output)
    room = request.max_total - len(request.prompt) - known
    for count, token in enumerate(drawn, 1):
        if token < 0:
            return drawn[: count - 1], FinishReason.ERROR
        if token in request.stop_ids and known + count >= request.params.min_tokens:
            return drawn[:count], FinishReason.STOP
        if count == room:
            return drawn[:count], FinishReason.LENGTH
    return drawn, None


def stopped(request: Request) -> bool:
    """A stop id is the last token, as the device has seen."""
    output = request.output
    return bool(output) and output[-1] in request.stop_ids and len(output) >= request.params.min_tokens
