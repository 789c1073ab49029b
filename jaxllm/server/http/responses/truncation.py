"""`truncation="auto"`: a conversation that is too long for the model loses its oldest turns."""

from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.dialects import tokenized
from jaxllm.server.http.link import EngineLink
from jaxllm.server.http.responses.items import Item
from jaxllm.server.http.responses.reading import ResponsesRequest

_SYSTEM = ("system", "developer")


async def fitting(link: EngineLink, request: ResponsesRequest, history: list[Item]) -> ChatRequest:
    """The chat of as many of the last turns as the context holds, with room for an answer; the last one at least.

    A turn begins with a user's message, so that no call loses its output; what the system says stays.
    """
    items = [*history, *request.input]
    starts = [i for i, item in enumerate(items) if item.get("role") == "user"][1:]

    def chat(start: int) -> ChatRequest:
        """Of the items from there on."""
        kept = [item for i, item in enumerate(items) if i >= start or item.get("role") in _SYSTEM]
        return request.model_copy(update={"input": kept}).to_chat([])

    async def fits(start: int) -> bool:
        counted = await tokenized(link, chat(start), request)
        room = min(request.max_output_tokens or 1, counted.max_model_len // 2)
        return len(counted.token_ids) + room <= counted.max_model_len

    if not starts or await fits(0):
        return chat(0)
    low, high = 0, len(starts) - 1  # the first start that fits is here, or none does
    while low < high:
        middle = (low + high) // 2
        if await fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    return chat(starts[low])
