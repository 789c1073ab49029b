"""From the engine's chunks to OpenAI's answers: one JSON object, or a stream of server-sent events.

One class per endpoint says where the text goes and how log probabilities look; what surrounds them is shared. The
parts of an event that stay the same are encoded once per request, so that an event costs one encoded string.
"""

import time
import uuid
from collections.abc import Iterable
from typing import Any

from pydantic_core import to_json

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.chats import ChatRequest
from jaxllm.server.http.errors import ApiError, from_number, named_by
from jaxllm.server.http.offsets import Offsets
from jaxllm.server.http.requests import CompletionRequest

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""OpenAI's value for a token that is impossible: JSON has no infinity."""
_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class Choice:
    """What has come of one choice: everything for a whole answer, the running counts for a stream."""

    def __init__(self, index: int, first: "Choice | None" = None):
        """first: the first choice of the same prompt, which has the prompt's log probabilities."""
        self.index = index
        self.first = first or self
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.tool_calls: list[pb.ToolCallDelta] = []
        self.calls_tools = False
        self.token_ids: list[int] = []
        self.logprobs: list[pb.TokenLogprob] = []
        self.prompt_token_ids: list[int] = []
        self.prompt_logprobs: list[pb.TokenLogprob] = []
        self.counts = pb.Counts()
        self.timings = pb.Timings()
        self.finish: pb.Finish | None = None
        self.beginning = ""  # of the text
        self.offsets = Offsets()  # of the tokens whose log probabilities have been told of
        self.started = False
        self.echoed = False  # the prompt's log probabilities have been told of

    def add(self, chunk: pb.GenerateChunk) -> None:
        """Raises ApiError when the server ended the request."""
        self.texts.append(chunk.text)
        self.beginning = self.beginning or chunk.text
        if chunk.reasoning:
            self.reasoning.append(chunk.reasoning)
        if chunk.tool_calls:
            self.tool_calls.extend(chunk.tool_calls)
            self.calls_tools = True
        # Asked first, and sliced: to go through protobuf's lists, empty ones too, takes several times as long.
        if chunk.token_ids:
            self.token_ids += chunk.token_ids[:]
        if chunk.logprobs:
            self.logprobs += chunk.logprobs[:]
        if chunk.prompt_token_ids:
            self.prompt_token_ids += chunk.prompt_token_ids[:]
        if chunk.prompt_logprobs:
            self.prompt_logprobs += chunk.prompt_logprobs[:]
        if chunk.HasField("counts"):
            self.counts = chunk.counts
        if chunk.HasField("finish"):
            if chunk.finish.reason not in _REASONS:
                raise _ended(chunk.finish.reason)
            self.finish = chunk.finish
            self.timings = chunk.timings

    def clear(self) -> None:
        """Forget what an event has carried."""
        self.texts, self.token_ids, self.logprobs, self.prompt_token_ids = [], [], [], []
        self.reasoning, self.tool_calls = [], []

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def finish_reason(self) -> str | None:
        if self.finish is None:
            return None
        reason = _REASONS[self.finish.reason]
        return "tool_calls" if reason == "stop" and self.calls_tools else reason

    @property
    def stop_reason(self) -> str | int | None:
        """The stop string or stop token id that was met (vLLM's field)."""
        field = self.finish.WhichOneof("stop") if self.finish else None
        return getattr(self.finish, field) if field else None


def _ended(reason: int) -> ApiError:
    if reason == pb.FINISH_REASON_ABORT:
        return ApiError(503, "the request was aborted on the server; try again", code="aborted")
    if reason == pb.FINISH_REASON_DEADLINE:
        return ApiError(504, "the request's deadline passed before it ended", code="deadline_exceeded")
    return ApiError(500, "the request failed in the engine", code="internal")


class OpenAIAnswer[R: (CompletionRequest, ChatRequest)]:
    """The answer to one HTTP request, as generation.Answer describes it.

    Class attributes: the id's prefix, and the `object` of whole answers and of events.
    """

    prefix: str
    object: str
    event_object: str
    id_header = b"x-request-id"
    idle_events = b""

    def __init__(self, request: R, model: str):
        self.request: R = request
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.streaming = bool(request.stream)
        self.requests = request.generate_requests(self.id)
        self._head = {"id": self.id, "object": self.object, "created": int(time.time()), "model": model}
        self.choices: dict[tuple[str, int], Choice] = {}
        for asked in self.requests:
            first: Choice | None = None
            for sample in range(asked.sampling.n or 1):
                choice = self.choices[asked.request_id, sample] = Choice(len(self.choices), first)
                first = first or choice
        self._touched: dict[int, Choice] = {}  # has something that no event has carried
        options = request.stream_options
        self._usage_at_end = bool(options and options.include_usage)
        self._usage_always = bool(options and options.continuous_usage_stats)
        self._usage_json: bytes | None = None  # what the events that are being made say of it
        event_head = to_json(self._head | {"object": self.event_object})[:-1]
        self._event_head = b"data: " + event_head + b',"choices":['

    def add(self, chunks: Iterable[pb.GenerateChunk]) -> None:
        for chunk in chunks:
            if chunk.HasField("error"):
                with named_by(self.request):
                    raise from_number(chunk.error.code, chunk.error.message, chunk.error.param)
            choice = self.choices[chunk.request_id, chunk.index]
            self._touched[choice.index] = choice
            choice.add(chunk)

    def body(self) -> bytes:
        choices = [self._choice(choice) for choice in self.choices.values()]
        return to_json({**self._head, "choices": choices, **self._extras(), "usage": self._usage()})

    def events(self) -> bytes:
        events = []
        self._usage_json = None
        for choice in self._touched.values():
            if not choice.started:
                choice.started = True
                events.extend(self._opening(choice))
            if choice.tool_calls and choice.finish:
                # OpenAI's client tells of a call's end if the reason comes behind it, and never if both come at once.
                events.append(self._full_event(choice, ended=False))
                choice.clear()
            if choice.logprobs or choice.finish or self.request.return_token_ids:
                events.append(self._full_event(choice, ended=choice.finish is not None))
            elif choice.token_ids or any(choice.texts):  # tokens whose text is still to come are told of, too
                events.append(
                    b"".join((
                        self._event_head, b'{"index":%d,' % choice.index, self._new(choice),
                        b',"logprobs":null,"finish_reason":null}]', self._usage_part(), b"}\n\n",
                    ))
                )  # fmt: skip
            choice.clear()
        self._touched.clear()
        return b"".join(events)

    def last_events(self) -> bytes:
        if not self._usage_at_end:
            return DONE
        head = self._event_head + b'],"usage":'
        return head + to_json(self._usage()) + b"}\n\n" + DONE

    def error_events(self, error: ApiError) -> bytes:
        return b"data: " + error.body() + b"\n\n" + DONE

    def _usage_part(self) -> bytes:
        if self._usage_always:
            if self._usage_json is None:  # of all choices, of which there may be thousands: once for all that came
                self._usage_json = to_json(self._usage())
            return b',"usage":' + self._usage_json
        return b',"usage":null' if self._usage_at_end else b""

    def _full_event(self, choice: Choice, ended: bool) -> bytes:
        """ended: tell how the choice ended."""
        rest: dict[str, Any] = {
            "logprobs": self._logprobs(choice) if self._scored(choice) else None,
            "finish_reason": choice.finish_reason if ended else None,
            "stop_reason": choice.stop_reason if ended else None,
        }
        if self.request.return_timings and ended:
            rest["timings"] = timed(choice.timings)
        if self.request.return_token_ids:
            rest["token_ids"] = choice.token_ids
            if choice.prompt_token_ids:
                rest["prompt_token_ids"] = choice.prompt_token_ids
        return b"".join((
            self._event_head, b'{"index":%d,' % choice.index, self._new(choice), b",", to_json(rest)[1:], b"]",
            self._usage_part(), b"}\n\n",
        ))  # fmt: skip

    def _choice(self, choice: Choice) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "index": choice.index,
            **self._whole(choice),
            "logprobs": None if self.request.num_logprobs is None else self._logprobs(choice),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self.request.return_timings:
            answer["timings"] = timed(choice.timings)
        if self.request.return_token_ids:
            answer["token_ids"] = choice.token_ids
        return answer

    def _usage(self) -> dict[str, Any]:
        choices = self.choices.values()
        firsts = [choice.counts for choice in choices if choice.first is choice]
        prompt = sum(counts.prompt for counts in firsts)
        completion = sum(choice.counts.completion for choice in choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(counts.cached for counts in firsts)},
            **self._usage_details(),
        }

    def _usage_details(self) -> dict[str, Any]:
        """Fields of the usage that not every endpoint has."""
        return {}

    def _prompt_logprobs(self, choice: Choice) -> list[dict[str, Any] | None]:
        """vLLM's form: per prompt token a dictionary by token id; the first token has none."""
        return [None, *(_by_id(entry) for entry in choice.first.prompt_logprobs if entry.rank)]

    def _opening(self, choice: Choice) -> list[bytes]:
        """Events before the first text of a choice."""
        return []

    def _whole(self, choice: Choice) -> dict[str, Any]:
        """The part of a whole choice that holds what was generated."""
        raise NotImplementedError

    def _new(self, choice: Choice) -> bytes:
        """The same for an event and what is new, as the JSON of an object's inside."""
        raise NotImplementedError

    def _scored(self, choice: Choice) -> bool:
        """There are log probabilities that no event has carried."""
        return bool(choice.logprobs)

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        """The log probabilities that the choice holds now."""
        raise NotImplementedError

    def _extras(self) -> dict[str, Any]:
        """Fields of a whole answer beside the choices."""
        return {}


class CompletionAnswer(OpenAIAnswer[CompletionRequest]):
    """`text_completion`: the text in `text`, log probabilities in parallel lists."""

    prefix = "cmpl"
    object = "text_completion"
    event_object = "text_completion"

    def add(self, chunks: Iterable[pb.GenerateChunk]) -> None:
        super().add(map(_without_drawn, chunks) if self.request.only_scores else chunks)

    def _whole(self, choice: Choice) -> dict[str, Any]:
        return {"text": choice.text}

    def _new(self, choice: Choice) -> bytes:
        return b'"text":' + to_json(choice.text)

    def _choice(self, choice: Choice) -> dict[str, Any]:
        answer = super()._choice(choice)
        if self.request.return_token_ids:
            answer["prompt_token_ids"] = choice.prompt_token_ids
        if self.request.prompt_logprobs is not None:
            answer["prompt_logprobs"] = self._prompt_logprobs(choice)
        return answer

    def _scored(self, choice: Choice) -> bool:
        if self.request.only_scores:
            return self.request.logprobs is not None and choice.finish is not None and not choice.echoed
        return super()._scored(choice)

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        entries, offsets = [], []
        if self.request.echo and not choice.echoed:
            choice.echoed = True
            entries += choice.first.prompt_logprobs
            offsets += choice.offsets.of_prompt([entry.token_bytes for entry in entries], choice.beginning)
        entries += choice.logprobs
        offsets += choice.offsets.of(entry.token_bytes for entry in choice.logprobs)
        return {  # the prompt's first token has no rank and no log probability
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [_finite(entry.logprob) if entry.rank else None for entry in entries],
            "top_logprobs": [_by_text(entry) if entry.rank else None for entry in entries],
            "text_offset": offsets,
        }


def _without_drawn(chunk: pb.GenerateChunk) -> pb.GenerateChunk:
    """The same of an answer that ends before its first token."""
    del chunk.token_ids[:]
    if chunk.HasField("counts"):
        chunk.counts.completion = 0
    if chunk.finish.reason == pb.FINISH_REASON_STOP:
        chunk.finish.CopyFrom(pb.Finish(reason=pb.FINISH_REASON_LENGTH))
    return chunk


class ChatAnswer(OpenAIAnswer[ChatRequest]):
    """`chat.completion`: the text in a message, log probabilities as a list of tokens."""

    prefix = "chatcmpl"
    object = "chat.completion"
    event_object = "chat.completion.chunk"

    def _opening(self, choice: Choice) -> list[bytes]:
        opening = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return [self._event_head + opening % choice.index + self._usage_part() + b"}\n\n"]

    def _whole(self, choice: Choice) -> dict[str, Any]:
        parts = self._reasoning(choice)
        if choice.tool_calls:
            parts["tool_calls"] = list(_tool_calls(choice.tool_calls).values())
        content = choice.text or (None if choice.reasoning or choice.tool_calls else "")
        return {"message": {"role": "assistant", "content": content, "refusal": None, **parts}}

    def _new(self, choice: Choice) -> bytes:
        if not (choice.reasoning or choice.tool_calls):
            return b'"delta":{"content":' + to_json(choice.text) + b"}"
        delta: dict[str, Any] = self._reasoning(choice)
        if choice.text:
            delta["content"] = choice.text
        if choice.tool_calls:
            calls = _tool_calls(choice.tool_calls)
            delta["tool_calls"] = [{"index": index, **call} for index, call in calls.items()]
        return b'"delta":' + to_json(delta)

    def _reasoning(self, choice: Choice) -> dict[str, Any]:
        """Under both of its names: vLLM's older one, which most clients know, and its newer one."""
        if not (choice.reasoning and self.request.include_reasoning):
            return {}
        text = "".join(choice.reasoning)
        return {"reasoning_content": text, "reasoning": text}

    def _usage_details(self) -> dict[str, Any]:
        reasoning = sum(choice.counts.reasoning for choice in self.choices.values())
        return {"completion_tokens_details": {"reasoning_tokens": reasoning}}

    def _extras(self) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        choice = next(iter(self.choices.values()))
        if self.request.return_token_ids:
            extras["prompt_token_ids"] = choice.prompt_token_ids
        if self.request.prompt_logprobs is not None:
            extras["prompt_logprobs"] = self._prompt_logprobs(choice)
        return extras

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        return {"content": [scored(entry) for entry in choice.logprobs], "refusal": None}


def _tool_calls(deltas: Iterable[pb.ToolCallDelta]) -> dict[int, dict[str, Any]]:
    """What is said of each call, by its index. Clients take an event to have one part of a call at most."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta.index in calls:
            calls[delta.index]["function"]["arguments"] += delta.arguments
        else:
            calls[delta.index] = _tool_call(delta)
    return calls


def _tool_call(delta: pb.ToolCallDelta) -> dict[str, Any]:
    """What a delta says of its call; all but the arguments in the first one alone."""
    if not delta.name:
        return {"function": {"arguments": delta.arguments}}
    return {
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


def timed(timings: pb.Timings) -> dict[str, float]:
    """The seconds that a request waited, computed and drew; a stage that it did not come to is 0."""
    return {field.name: getattr(timings, field.name) for field in pb.Timings.DESCRIPTOR.fields}


def scored(entry: pb.TokenLogprob) -> dict[str, Any]:
    """A token's log probability, and those of the most likely in its place, as chats and Responses have them."""
    return {**_token(entry), "top_logprobs": [_token(top) for top in entry.top]}


def _token(entry: pb.TokenLogprob | pb.TopLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": _finite(entry.logprob), "bytes": list(entry.token_bytes)}


def _by_text(entry: pb.TokenLogprob) -> dict[str, float]:
    """The most likely tokens and the drawn one. Where two have the same text, the likelier stands."""
    likely: dict[str, float] = {}
    tokens: tuple[pb.TopLogprob | pb.TokenLogprob, ...] = (*entry.top, entry)
    for top in tokens:
        likely.setdefault(top.token, _finite(top.logprob))
    return likely


def _by_id(entry: pb.TokenLogprob) -> dict[str, Any]:
    likely = {str(top.token_id): _ranked(top, rank) for rank, top in enumerate(entry.top, 1)}
    return likely | {str(entry.token_id): _ranked(entry, entry.rank)}


def _ranked(token: pb.TokenLogprob | pb.TopLogprob, rank: int) -> dict[str, Any]:
    return {"logprob": _finite(token.logprob), "rank": rank, "decoded_token": token.token}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
