"""Responses that are made whether or not a client waits for them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.link import EngineLink
from jaxllm.server.http.responses.events import ResponseAnswer
from jaxllm.server.http.responses.store import Store

log = logging.getLogger(__name__)


class BackgroundRun:
    """Makes one response. Its events are kept, so that clients can follow them from wherever they left."""

    def __init__(self, link: EngineLink, store: Store, answer: ResponseAnswer, requests: list[pb.GenerateRequest]):
        self._link = link
        self._store = store
        self._answer = answer
        self._requests = requests
        self._events: list[bytes] = []
        self._news = asyncio.Event()

    def start(self) -> asyncio.Task[None]:
        """Needs the store to keep the answer already."""
        self._tell()
        self._task = asyncio.create_task(self._run(), name=self._answer.id)
        return self._task

    async def cancel(self) -> None:
        """End it, with the engine's work for it; nothing where it has ended."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._answer.cancel()  # one that was cancelled before it began has not done so itself, nor let go of these
        self._requests = []
        self._news.set()

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """The events behind the one of that sequence number, to the last."""
        at = after + 1
        while True:
            if at < len(self._events):
                yield b"".join(self._events[at:])
                at = len(self._events)
            elif self._answer.ended:
                return
            else:
                news = self._news
                await news.wait()

    async def _run(self) -> None:
        try:
            async with self._link.submit(self._requests) as stream:
                while not stream.done:
                    self._answer.add(await stream.next())
                    self._tell()
        except ApiError as error:
            self._answer.fail(error)
        except asyncio.CancelledError:
            self._answer.cancel()
            raise
        except Exception:  # nobody waits here who could be told otherwise
            log.exception("response %s failed", self._answer.id)
            self._answer.fail(ApiError(500, "internal error", code="internal"))
        finally:
            self._requests = []  # the store counts what is kept, and they are not
            self._tell()
            self._store.settle(self._answer)

    def _tell(self) -> None:
        """Keep the new events and wake who follows them."""
        events = self._answer.take_events()
        self._events.extend(events)
        self._store.grow(self._answer.id, sum(map(len, events)))
        self._news.set()
        self._news = asyncio.Event()
