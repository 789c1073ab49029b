"""The chunks that wait for a call's client."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jaxllm.server.grpc.conversions import CallError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb

if TYPE_CHECKING:
    from jaxllm.server.grpc.generation import Generation

CHUNK_WEIGHT = 8192  # tokens and log probabilities in a chunk before the next one begins: 300 kB or so
SMALL = 1024  # bytes of a chunk that is filled again once it is written
FILLS = 256  # times that it is: its memory only grows


class Call:
    """One call's requests in flight and the chunks that wait for its client.

    Attributes:
        requests: those that have not ended, by id.
        reading: more requests may come.
    """

    def __init__(self, reading: bool = False):
        self.requests: dict[str, Generation] = {}
        self.reading = reading
        self._chunks: list[pb.GenerateChunk] = []
        self._open: dict[tuple[str, int], tuple[pb.GenerateChunk, int]] = {}
        self._spare: list[pb.GenerateChunk] = []
        self._num_written = 0
        self._wake = asyncio.Event()

    def chunk(self, request_id: str, weight: int, index: int = 0) -> pb.GenerateChunk:
        """The waiting chunk of a request's sample to which `weight` tokens and log probabilities are to be added."""
        chunk, held = self._open.get((request_id, index), (None, 0))
        if chunk is None or held + weight > CHUNK_WEIGHT:
            chunk, held = self._append(request_id), 0
            chunk.index = index
        self._open[request_id, index] = chunk, held + weight
        return chunk

    def put(self, chunks: Iterable[pb.GenerateChunk]) -> None:
        """Add chunks that were made before."""
        self._chunks.extend(chunks)
        self._wake.set()

    def fail(self, request_id: str, error: CallError) -> None:
        """Add a chunk of its own that tells of an error."""
        error.write(self._append(request_id).error)

    def close(self) -> None:
        """No more requests come."""
        self.reading = False
        self._wake.set()

    def wake(self) -> None:
        """Let `take` look again: a request has ended."""
        self._wake.set()

    async def take(self, whole: bool = False) -> list[pb.GenerateChunk]:
        """All that waits, in order for each request; empty at the end of the call. whole: wait for that end."""
        while (whole or not self._chunks) and (self.reading or self.requests):
            self._wake.clear()
            await self._wake.wait()
        return self.take_now()

    def take_now(self) -> list[pb.GenerateChunk]:
        """All that waits."""
        taken, self._chunks = self._chunks, []
        self._open.clear()
        return taken

    def written(self, chunks: list[pb.GenerateChunk]) -> None:
        """`take` gave them, and nobody needs them any more: they become others.

        Not for their own cost: with every 10,000th piece of memory that protobuf frees, two for a message, it trims the
        heap, which takes 30 ms where programs were compiled, and who needs the interpreter's lock waits.
        """
        self._spare += [chunk for chunk in chunks if chunk.ByteSize() <= SMALL]
        self._num_written += len(chunks)
        if self._num_written > FILLS * len(self._spare):  # all are back
            self._spare.clear()
            self._num_written = 0

    def _append(self, request_id: str) -> pb.GenerateChunk:
        if self._spare:
            chunk = self._spare.pop()
            chunk.Clear()
        else:
            chunk = pb.GenerateChunk()
        chunk.request_id = request_id
        self._chunks.append(chunk)
        self._wake.set()
        return chunk
