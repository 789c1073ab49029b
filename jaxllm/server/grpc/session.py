"""From a call's requests to the engine, and from the engine's deltas to the chunks of a call.

`Requests` holds every request in flight. The engine's thread hands it deltas; the event loop is woken once for
all that wait, turns each into text and adds it to the chunks of its `Call`. A call's handler takes the chunks and
writes them. What a slow reader has not taken yet is merged, so that neither the engine nor another client ever
waits for it, and what is held for it is no more than its answers.
"""

import asyncio
import dataclasses
import functools
import itertools
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from jaxllm.config import ServerConfig
from jaxllm.core import Delta, FinishReason
from jaxllm.errors import RequestError
from jaxllm.sampling_params import MAX_SAMPLES, SamplingParams
from jaxllm.server.grpc import conversions, labels
from jaxllm.server.grpc.calls import Call
from jaxllm.server.grpc.conversions import CallError, Conversation
from jaxllm.server.grpc.generation import Generation, MakeReader
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.limits import MAX_STOP_LENGTH
from jaxllm.server.outcome import OnOutcome, Outcome
from jaxllm.server.text import AnswerFormat, AnswerReader, Tokenizer
from jaxllm.server.text.constraining import GENERIC_TOOLS, constrain

if TYPE_CHECKING:  # what it imports at run time is a device's
    from jaxllm.engine import EngineClient

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Times as long as making and writing chunks took beyond SOON, until the next are made: the event loop shares the
interpreter's lock with the engine's thread, and hears of what was written later."""
SOON = 0.003
"""Seconds of a delivery, of some hundred streams, that are no matter beside a step of as many."""
INLINE_SIZE = 4096  # characters or tokens: what is longer becomes the other in a thread, and holds up nobody's stream


@dataclass(frozen=True)
class ChatOptions:
    """How chats are answered. form: how the model writes. auto_tool_choice: it may be left to it whether to call."""

    form: AnswerFormat
    auto_tool_choice: bool

    def check(self, chat: Conversation) -> None:
        """RequestError for tools where none can be called."""
        if chat.must_call:
            return  # a grammar sees to it, in a form of calls that is known
        if chat.tools and self.form.tools is None:
            raise RequestError(
                "tools: the server knows no format of calls for this model: start it with --tool-call-parser NAME, "
                "or send tool_choice='none'",
                "tools",
            )
        if chat.tools and not self.auto_tool_choice:
            raise RequestError(
                "tool_choice 'auto' is turned off here (--no-enable-auto-tool-choice): send 'none'",
                "tool_choice",
            )

    def constrain(self, params: SamplingParams, chat: Conversation, prompt: str) -> SamplingParams:
        """The same parameters, with what the answer to a chat has to fit as a whole. Raises RequestError."""
        form = constrain(
            self.form,
            params.structured_outputs,
            may_call=chat.tools,
            must_call=chat.must_call,
            several=chat.several,
            prompt=prompt,
            continued=chat.continued,
        )
        return params if form is params.structured_outputs else dataclasses.replace(params, structured_outputs=form)

    def reader(self, chat: Conversation, prompt: str) -> MakeReader:
        """Makes what tells an answer into its parts."""
        form = self.form
        if chat.must_call and form.tools is None:
            form = dataclasses.replace(form, tools=GENERIC_TOOLS)
        return functools.partial(
            AnswerReader, form, chat.tools, parallel=chat.parallel, prompt=prompt, continued=chat.continued
        )


class Requests:
    """Every request in flight, between the event loop and the engine's thread.

    Attributes:
        client: the engine.
        config: the limits of a request.
        refusal: why no request is taken any more, or None.
    """

    def __init__(
        self,
        client: "EngineClient",
        tokenizer: Tokenizer | None,
        chats: ChatOptions | None = None,
        config: ServerConfig | None = None,
        on_outcome: Sequence[OnOutcome] = (),
    ):
        """On the event loop that serves the calls. tokenizer: None serves token ids alone.

        chats: how answers to chats are read; as plain text where it is None. config: its defaults where it is None.
        on_outcome: told of each request that has ended, or been refused once it was entered.
        """
        self.client = client
        self.config = config or ServerConfig()
        self._on_outcome = on_outcome
        self._tokenizer = tokenizer
        self._chats = chats or ChatOptions(AnswerFormat(), True)
        self.refusal: str | None = None
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, Generation] = {}
        self._deltas: deque[tuple[Generation, Delta]] = deque()
        self._woken = False
        self._next_delivery = 0.0
        self._count = itertools.count()
        self._starting: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer is not None and self._tokenizer.has_chat_template

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises RequestError when there is none."""
        if self._tokenizer is None:
            raise RequestError("this server has no tokenizer: send token ids, without stop strings", "prompt")
        return self._tokenizer

    def open(self, wire: pb.GenerateRequest, call: Call) -> Generation:
        """Enter a request under its id. Raises CallError or RequestError."""
        self.check_serving()
        self.check_model(wire.model)
        self.client.info.check_generates()
        if len(self._running) >= self.client.capacity:  # those that are still being tokenized count, too
            raise CallError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{len(self._running)} requests run or wait already: try again later, or raise --max-queued",
            )
        request_id = wire.request_id or f"gen-{uuid.uuid4().hex}"
        if request_id in self._running:
            raise CallError(
                grpc.StatusCode.ALREADY_EXISTS,
                f"request_id={request_id!r}: a request of that id is still running; choose another, or leave it empty",
                "request_id",
            )
        num_samples = min(wire.sampling.n or 1, MAX_SAMPLES)  # what is more is refused later
        generation = Generation(request_id, f"{request_id}/{next(self._count)}", call, num_samples)
        outcome = generation.outcome
        outcome.client_request_id = labels.clean(wire.client_request_id)
        outcome.traceparent, outcome.tracestate = wire.traceparent, wire.tracestate
        self._running[request_id] = call.requests[request_id] = generation
        return generation

    def start(self, generation: Generation, wire: pb.GenerateRequest) -> None:
        """`submit` without waiting for it."""
        task = self._loop.create_task(self.submit(generation, wire, None))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def submit(self, generation: Generation, wire: pb.GenerateRequest, call_deadline: float | None) -> None:
        """Give the engine an opened request. Whatever goes wrong is written to its call.

        call_deadline: time.monotonic() at which the call ends, or None.
        """
        arrival = time.monotonic()
        try:
            params = conversions.sampling_params(wire.sampling, self.client.info.generation_defaults)
            self._check_limits(params)
            if (tokenizer := self._tokenizer) is not None:
                resolve = functools.partial(tokenizer.resolve, params)
                params = await run_sized(sum(map(len, params.bad_words)), resolve)
            deadline = call_deadline
            if wire.HasField("timeout_seconds"):
                if not (math.isfinite(wire.timeout_seconds) and wire.timeout_seconds > 0):
                    raise RequestError(
                        f"timeout_seconds={wire.timeout_seconds}: must be a positive number", "timeout_seconds"
                    )
                deadline = min(arrival + wire.timeout_seconds, math.inf if call_deadline is None else call_deadline)
            prompt, make_reader, params = await self._prompt(wire, params)
            if generation.ended:
                return
            make_request = functools.partial(
                self.client.make_request,
                prompt,
                params,
                request_id=generation.engine_id,
                priority=wire.priority,
                deadline=deadline,
                cache_salt=wire.cache_salt,
            )
            grammar = params.structured_outputs is not None  # compiling one can take a second
            request = await asyncio.to_thread(make_request) if grammar else make_request()
            if params.stop or params.echo:
                self.tokenizer  # noqa: B018 (raises when there is none)
            echo = wire.text
            if params.echo and (not echo or params.truncate_prompt_tokens is not None):
                echo = await self.decode(request.prompt, params.skip_special_tokens)
            if generation.ended:
                return
            call_ends = call_deadline is not None and deadline == call_deadline
            generation.prepare(request, self._tokenizer, call_ends, make_reader, echo if params.echo else "")
            generation.submitted = True
            self.client.submit(request, functools.partial(self._put, generation))
        except Exception as error:
            if not generation.ended:
                generation.fail(CallError.of(error))
        finally:
            if generation.ended or not generation.submitted:
                self._close(generation)

    def abort(self, request_id: str) -> bool:
        """End a request with FINISH_REASON_ABORT; False when there is none of that id."""
        generation = self._running.get(request_id)
        if generation is None:
            return False
        if generation.submitted:
            self.client.abort(generation.engine_id)  # its last delta ends the answer
        else:
            generation.abort()
            self._close(generation)
        return True

    def abort_all(self) -> int:
        return sum(self.abort(request_id) for request_id in list(self._running))

    def discard(self, call: Call) -> None:
        """Nobody waits for this call any more: end what it still has running."""
        for generation in list(call.requests.values()):
            generation.ended = True
            if generation.submitted:
                self.client.abort(generation.engine_id)
            self._close(generation)

    def check_serving(self) -> None:
        """Raises CallError(UNAVAILABLE) when no request can be answered."""
        if not self.client.alive:
            raise CallError(
                grpc.StatusCode.UNAVAILABLE, "the engine is dead: the server's log says why; it is to restart"
            )
        if self.refusal is not None:
            raise CallError(grpc.StatusCode.UNAVAILABLE, self.refusal)

    def check_model(self, name: str) -> None:
        """Raises CallError(NOT_FOUND) when a client asks for a model that is not served here."""
        info = self.client.info
        if name and name != info.name and name not in info.aliases:
            raise CallError(
                grpc.StatusCode.NOT_FOUND,
                f"model={name!r} is not served here; {info.name!r} is, and is also taken when empty",
                "model",
            )

    def _check_limits(self, params: SamplingParams) -> None:
        """RequestError for more than one request may ask for."""
        samples, stop = self.config.max_samples, self.config.max_stop_strings
        if params.num_samples > samples:
            name = "n" if params.best_of is None else "best_of"
            raise RequestError(f"{name}={params.num_samples}: at most {samples} here (--max-samples)", name)
        if len(params.stop) > stop:
            raise RequestError(
                f"stop holds {len(params.stop)} strings: at most {stop} here (--max-stop-strings)", "stop"
            )
        if (longest := max(map(len, params.stop), default=0)) > MAX_STOP_LENGTH:
            raise RequestError(
                f"stop holds a string of {longest} characters: at most {MAX_STOP_LENGTH}; send a shorter one", "stop"
            )

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        tokenizer = self.tokenizer
        return await run_sized(len(text), lambda: tokenizer.encode(text, add_special_tokens))

    async def encode_chat(self, chat: Conversation) -> tuple[str, list[int]]:
        """The prompt of a conversation: its text and its token ids."""
        tokenizer = self.tokenizer

        def encode() -> tuple[str, list[int]]:
            text = tokenizer.render_chat(chat.messages, **chat.keywords)
            return text, tokenizer.encode(text, add_special_tokens=False)

        return await run_sized(chat.size, encode)

    async def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        tokenizer = self.tokenizer
        return await run_sized(len(token_ids), lambda: tokenizer.decode(token_ids, skip_special_tokens))

    async def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        tokenizer = self.tokenizer
        return await run_sized(len(token_ids), lambda: [tokenizer.token_text(token) for token in token_ids])

    async def _prompt(
        self, wire: pb.GenerateRequest, params: SamplingParams
    ) -> tuple[list[int], MakeReader | None, SamplingParams]:
        """Its token ids, what makes a reader for each answer to a chat, and what a chat makes of the parameters."""
        match wire.WhichOneof("prompt"):
            case "token_ids":
                return list(wire.token_ids.ids), None, params
            case "chat":
                chat = await read_chat(wire.chat)
                self._chats.check(chat)
                text, token_ids = await self.encode_chat(chat)
                params = self._chats.constrain(params, chat, text)
                return token_ids, self._chats.reader(chat, text), params
            case "text" if wire.text:
                special = not wire.HasField("add_special_tokens") or wire.add_special_tokens
                return await self.encode(wire.text, special), None, params
            case "text":
                raise RequestError("the prompt is empty: send a text that says something, or token ids", "prompt")
        raise RequestError("the prompt is empty: set text, token_ids or chat", "prompt")

    def _put(self, generation: Generation, delta: Delta) -> None:
        """On the engine's thread: leave a delta for the event loop, waking it unless that is under way already."""
        self._deltas.append((generation, delta))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._next_delivery - self._loop.time() > 0.001:  # timers are no finer
            self._loop.call_at(self._next_delivery, self._deliver)
        else:
            self._deliver()

    def _deliver(self) -> None:
        """Make chunks of all that waits. Under load there is a pause behind it, so that chunks hold more tokens, and no
        queue grows."""
        begin = time.thread_time()  # not by the clock: waiting for the lock is no work
        # Cleared first: a delta that arrives from here on wakes the loop again, so that none is left behind.
        self._woken = False
        alive = self.client.alive
        while self._deltas:
            generation, delta = self._deltas.popleft()
            if generation.ended:
                continue
            stopped, reason = False, FinishReason.STOP  # a stop string's
            try:
                stopped = generation.take(delta, alive)
            except Exception as error:  # one request's text must not cost the others theirs
                log.exception("request %s failed", generation.request_id)
                generation.fail(CallError.of(error))
                reason = FinishReason.ERROR
            if generation.ended:
                if delta.finish is None or delta.more:  # the engine does not know of the end yet
                    self.client.abort(generation.engine_id, reason)
                self._close(generation)
            elif stopped:
                self.client.abort(generation.engine_id, reason, delta.index)
        # The loop runs callbacks in order: this one comes after every call woken above has had its turn.
        self._loop.call_soon(self._pause, begin)

    def _pause(self, begin: float) -> None:
        self._next_delivery = self._loop.time() + PAUSE * max(0.0, time.thread_time() - begin - SOON)

    def _close(self, generation: Generation) -> None:
        if self._running.get(generation.request_id) is generation:
            del self._running[generation.request_id], generation.call.requests[generation.request_id]
            generation.call.wake()
            self.tell(generation.outcome)

    def tell(self, outcome: Outcome) -> None:
        """To whom it concerns: a request has ended now."""
        outcome.ended = time.monotonic()
        for tell in self._on_outcome:
            try:
                tell(outcome)
            except Exception:  # what is told of a request is nothing to the request
                log.exception("nothing can be told of request %s", outcome.request_id)


async def read_chat(chat: pb.Chat) -> Conversation:
    """Raises RequestError."""
    return await run_sized(chat.ByteSize(), lambda: Conversation.read(chat))


async def run_sized[T](size: int, work: Callable[[], T]) -> T:
    """Small work here and now, larger work in a thread."""
    return work() if size <= INLINE_SIZE else await asyncio.to_thread(work)
