"""The responses that a server keeps, in memory and within bounds: the oldest make room for the newest."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic_core import to_json

from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.responses.events import ResponseAnswer
from jaxllm.server.http.responses.items import Item

if TYPE_CHECKING:
    from jaxllm.server.http.responses.background import BackgroundRun

MAX_GONE = 100_000
"""How many of those that are kept no more it can still say why of."""


@dataclass(slots=True)
class Kept:
    """A response. caller: whose it is; run: what makes it, where that is in the background; size: its bytes."""

    answer: ResponseAnswer
    caller: bytes
    run: "BackgroundRun | None"
    size: int


class Store:
    """Responses by id, oldest first. Those that are still being made stay.

    Each belongs to the caller who had it made, as Keys.identify tells them apart; for others it does not exist.
    """

    def __init__(self, max_responses: int, max_bytes: int):
        """max_bytes: of JSON, what inputs, outputs and kept events take. Input that responses share counts for each."""
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0
        self._gone: OrderedDict[str, tuple[bytes, str]] = OrderedDict()  # whose it was, and why it is kept no more
        self._owners: dict[str, str] = {}  # the response of an output item

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, answer: ResponseAnswer, caller: bytes, run: "BackgroundRun | None" = None) -> None:
        """Keep a caller's response from now on.

        Raises ApiError (429) when those being made in the background fill the store.
        """
        if run is not None:
            running = [kept for kept in self._kept.values() if kept.run is not None and not kept.answer.ended]
            held = sum(kept.size for kept in running) + answer.size
            if len(running) >= self._max_responses or held > self._max_bytes:
                raise ApiError(
                    429,
                    f"{len(running)} responses are being made in the background, and {self._bounds} are kept at most: "
                    "try again later, or without background",
                    code="store_full",
                )
        self._kept[answer.id] = Kept(answer, caller, run, answer.size)
        self._bytes += answer.size
        self._shrink()

    def grow(self, response_id: str, size: int) -> None:
        """A kept response has become larger by so many bytes."""
        if kept := self._kept.get(response_id):
            kept.size += size
            self._bytes += size
            self._shrink()

    def settle(self, answer: ResponseAnswer) -> None:
        """A response has ended: its output counts, and can be referred to."""
        if answer.id in self._kept:
            output = answer.output
            self._owners.update((item["id"], answer.id) for item in output)
            self.grow(answer.id, len(to_json(output)))

    def item(self, item_id: str, caller: bytes) -> Item:
        """An item of a kept answer of the caller's. Raises ApiError (400)."""
        if (owner := self._owners.get(item_id)) and (kept := self._kept[owner]).caller == caller:
            return next(item for item in kept.answer.output if item["id"] == item_id)
        raise ApiError(
            400,
            f"input: there is no item {item_id!r} in the answers that are kept here; send the item itself",
            param="input",
            code="item_not_found",
        )

    def get(self, response_id: str, caller: bytes) -> Kept:
        """A response of the caller's. Raises ApiError (404) that says why there is none."""
        if (kept := self._kept.get(response_id)) and kept.caller == caller:
            return kept
        owner, why = self._gone.get(response_id, (None, ""))
        if owner != caller:
            why = "it was never kept (store=false), or by a server that has ended since: responses are kept in memory"
        raise ApiError(
            404, f"there is no response {response_id!r}: {why}", param="response_id", code="response_not_found"
        )

    def delete(self, response_id: str, caller: bytes) -> Kept:
        """Raises ApiError (404) like `get`."""
        kept = self.get(response_id, caller)
        self._drop(response_id, "it was deleted")
        return kept

    @property
    def _bounds(self) -> str:
        return f"{self._max_responses:,} responses and {self._max_bytes / 2**20:,g} MiB of them"

    def _shrink(self) -> None:
        while len(self._kept) > self._max_responses or self._bytes > self._max_bytes:
            oldest = next((response_id for response_id, kept in self._kept.items() if kept.answer.ended), None)
            if oldest is None:
                return
            self._drop(
                oldest,
                f"it was forgotten, because this server keeps no more than {self._bounds} "
                "(--max-stored-responses, --max-stored-response-bytes)",
            )

    def _drop(self, response_id: str, why: str) -> None:
        kept = self._kept.pop(response_id)
        self._bytes -= kept.size
        for item in kept.answer.output:
            self._owners.pop(item["id"], None)
        self._gone[response_id] = kept.caller, why
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)
