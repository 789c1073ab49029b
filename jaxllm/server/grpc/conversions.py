"""Between the wire's messages and the engine's plain data: requests come in, chunks and statuses go out."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from jaxllm.core import Delta, FinishReason, Load, Logprobs, SamplingParams
from jaxllm.errors import EngineDeadError, QueueFullError, RequestError
from jaxllm.sampling_params import NOT_WITH_BEAMS
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.text import Tokenizer
from jaxllm.server.text.chat import text_of
from jaxllm.server.text.reading import Parsed
from jaxllm.server.tool_choice import check_tools, chosen_tools, is_text
from jaxllm.structured_outputs import StructuredOutputs

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
    FinishReason.DEADLINE: pb.FINISH_REASON_DEADLINE,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_SAMPLING_FIELDS = frozenset(field.name for field in dataclasses.fields(SamplingParams))


_EARLY_STOPPING: dict[int, bool | str] = {
    pb.EARLY_STOPPING_UNSPECIFIED: False,
    pb.EARLY_STOPPING_ALWAYS: True,
    pb.EARLY_STOPPING_NEVER: "never",
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "stop": tuple,
    "stop_token_ids": tuple,
    "bad_words": tuple,
    "early_stopping": lambda value: _EARLY_STOPPING.get(value, value),
    "logit_bias": lambda bias: {token: shortest(value) for token, value in bias.items()},
    "bad_words_ids": lambda words: tuple(tuple(word.ids) for word in words),
    "allowed_token_ids": lambda tokens: tuple(tokens.ids),
    "thinking_token_ids": lambda tokens: tuple(tokens.ids),
    "logits_processors": lambda named: {name: _argument(name, text) for name, text in named.items()},
    "structured_outputs": lambda form: _structured_outputs(form),
}
"""What becomes of the fields of pb.Sampling that are no plain numbers, strings or truths."""


class CallError(Exception):
    """A call ends with this status. `param` names the request field at fault, if one is."""

    def __init__(self, code: grpc.StatusCode, message: str, param: str = ""):
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    @classmethod
    def of(cls, error: Exception) -> "CallError":
        """The status an error of this package means; anything else is INTERNAL."""
        match error:
            case CallError():
                return error
            case RequestError():
                return cls(grpc.StatusCode.INVALID_ARGUMENT, str(error), error.param or "")
            case QueueFullError():
                return cls(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            case EngineDeadError():
                return cls(grpc.StatusCode.UNAVAILABLE, str(error))
        return cls(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")

    @classmethod
    def read(cls, wire: pb.Error) -> "CallError":
        return cls(_STATUS_CODES[wire.code], wire.message, wire.param)

    def write(self, wire: pb.Error) -> None:
        wire.code = self.code.value[0]
        wire.message = self.message
        wire.param = self.param


def reject_unknown_fields(message: Message) -> None:
    """RequestError when the message, or one inside it, carries a field that its declaration does not have."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise RequestError(
            f"{message.DESCRIPTOR.name} has no field number {unknown[0].field_number}: "
            "the client speaks a later version of the protocol; leave the field out, or upgrade the server"
        )
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is not None and kind.file is message.DESCRIPTOR.file and not kind.GetOptions().map_entry:
            for inner in (value,) if isinstance(value, Message) else value:
                reject_unknown_fields(inner)


def sampling_params(wire: pb.Sampling, defaults: Mapping[str, float | int]) -> SamplingParams:
    """Set fields as they are, unset ones from the checkpoint's generation defaults, then from SamplingParams.

    max_tokens is the exception: unset, the request goes on to the end of the context. Raises RequestError.
    """
    values: dict[str, Any] = {name: value for name, value in defaults.items() if name in _SAMPLING_FIELDS}
    values.setdefault("max_tokens", None)
    for field, value in wire.ListFields():
        if read := _READERS.get(field.name):
            value = read(value)
        elif field.type == FieldDescriptor.TYPE_FLOAT:
            value = shortest(value)
        values[field.name] = value
    if values.get("use_beam_search"):  # which draws nothing: how to draw is not for it to know
        drawing = {*NOT_WITH_BEAMS, "temperature"}
        values = {name: value for name, value in values.items() if name not in drawing or _is_set(wire, name)}
    return SamplingParams(**values)


def _structured_outputs(wire: pb.StructuredOutputs) -> StructuredOutputs:
    """Raises RequestError."""
    lists = ("choice", "thinking_ends", "thinking_starts")
    values: dict[str, Any] = {
        field.name: tuple(value) if field.name in lists else value for field, value in wire.ListFields()
    }
    return StructuredOutputs(**values)


def _argument(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"logits_processors: {name}: no JSON ({error})", "logits_processors") from error


def _is_set(wire: Message, name: str) -> bool:
    return any(field.name == name for field, _ in wire.ListFields())


def shortest(value: float) -> float:
    """The decimal a client wrote into a float32 field: 0.9, not 0.8999999761581421."""
    return float(str(np.float32(value)))


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A chat as the text room takes it.

    Attributes:
        keywords: of `Tokenizer.render_chat`, the tools included.
        tools: what the answer may call.
        must_call: those of them of which the answer has to call one, if it has to.
        several: it may hold more than one call.
    """

    messages: list[dict[str, Any]]
    keywords: dict[str, Any]
    tools: list[dict[str, Any]]
    must_call: list[dict[str, Any]]
    parallel: bool
    several: bool

    @classmethod
    def read(cls, chat: pb.Chat) -> "Conversation":
        """Raises RequestError."""
        try:
            keywords: dict[str, Any] = _with_whole_numbers(MessageToDict(chat.template_kwargs))
        except ValueError as error:
            raise RequestError(f"template_kwargs: not JSON ({error})", "template_kwargs") from error
        for name in ("messages", "tools", "documents"):
            if name in keywords:
                raise RequestError(
                    f"template_kwargs must not hold {name!r}: they have a field of their own", "template_kwargs"
                )
        if chat.continue_final_message:
            keywords["continue_final_message"] = True
        if chat.documents:
            keywords["documents"] = _objects(chat.documents, "documents")
        tools = _objects(chat.tools, "tools")
        check_tools(tools)
        choice, parallel = chat.tool_choice, chat.parallel_tool_calls or not chat.HasField("parallel_tool_calls")
        must_call: list[dict[str, Any]] = []
        if choice.WhichOneof("choice") == "function":
            must_call = chosen_tools(tools, choice.function)
        elif choice.mode == pb.ToolChoice.MODE_REQUIRED:
            must_call = chosen_tools(tools, None)
        elif choice.mode == pb.ToolChoice.MODE_NONE:
            tools = []
        elif choice.mode not in pb.ToolChoice.Mode.values():
            raise RequestError(f"tool_choice.mode={choice.mode}: there is no such mode", "tool_choice")
        if tools:
            keywords["tools"] = tools
        messages = [_message(message) for message in chat.messages]
        return cls(messages, keywords, tools, must_call, parallel, parallel and not choice.function)

    @property
    def size(self) -> int:
        """Characters of its messages, tools, documents and variables, about."""
        return len(str(self.messages)) + len(str(self.keywords))

    @property
    def continued(self) -> str | None:
        """The beginning of the answer, if the messages end with one."""
        if not self.keywords.get("continue_final_message"):
            return None
        return text_of(self.messages[-1]["content"])


def _with_whole_numbers(value: Any) -> Any:
    """What a Struct holds, all of whose numbers are floating: no template could count or slice by 3.0."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _with_whole_numbers(each) for name, each in value.items()}
        case list():
            return [_with_whole_numbers(each) for each in value]
    return value


def _message(wire: pb.ChatMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": wire.role, "content": wire.content}
    if wire.parts:
        message["content"] = [{"type": "text", "text": part.text} for part in wire.parts]
    if wire.name:
        message["name"] = wire.name
    if wire.reasoning:
        message["reasoning_content"] = wire.reasoning
    if wire.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in wire.tool_calls
        ]
    if wire.tool_call_id:
        message["tool_call_id"] = wire.tool_call_id
    return message


def _objects(texts: Sequence[str], field: str) -> list[dict[str, Any]]:
    objects = []
    for i, text in enumerate(texts):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{field}[{i}]: no JSON ({error})", field) from error
        if not isinstance(value, dict):
            raise RequestError(f"{field}[{i}]: must be a JSON object", field)
        if not is_text(json.dumps(value, ensure_ascii=False)):
            raise RequestError(f"{field}[{i}]: holds half of a surrogate pair, which no text has", field)
        objects.append(value)
    return objects


def write_logprobs(
    target: "RepeatedCompositeFieldContainer[pb.TokenLogprob]",
    token_ids: Sequence[int],
    logprobs: Logprobs,
    tokenizer: Tokenizer | None,
) -> None:
    """Append one entry per token; logprobs holds len(token_ids) positions or more. No tokenizer: ids alone."""
    text = tokenizer.token_text if tokenizer else lambda token_id: ""
    raw = tokenizer.token_bytes if tokenizer else lambda token_id: b""
    tops = zip(logprobs.top_ids.tolist(), logprobs.top.tolist(), strict=True)
    for token_id, logprob, rank, (top_ids, top) in zip(
        token_ids, logprobs.token.tolist(), logprobs.rank.tolist(), tops, strict=False
    ):
        entry = target.add(
            token_id=token_id,
            logprob=logprob,
            rank=rank,
            token=text(token_id),
            token_bytes=raw(token_id),
        )
        for top_id, top_logprob in zip(top_ids, top, strict=True):
            entry.top.add(
                token_id=top_id,
                logprob=top_logprob,
                token=text(top_id),
                token_bytes=raw(top_id),
            )


def first_of_prompt(token_id: int, tokenizer: Tokenizer | None) -> pb.TokenLogprob:
    """The entry of a prompt's first token, which nothing precedes: it has a text alone."""
    if tokenizer is None:
        return pb.TokenLogprob(token_id=token_id)
    text, raw = tokenizer.token_text(token_id), tokenizer.token_bytes(token_id)
    return pb.TokenLogprob(token_id=token_id, token=text, token_bytes=raw)


def part(logprobs: Logprobs, start: int, stop: int) -> Logprobs:
    """The positions [start, stop)."""
    return Logprobs(
        logprobs.token[start:stop], logprobs.rank[start:stop], logprobs.top_ids[start:stop], logprobs.top[start:stop]
    )


def write_parsed(target: pb.GenerateChunk, parsed: Parsed) -> None:
    """Append what a piece of a chat's answer says."""
    if parsed.content:
        target.text += parsed.content
    if parsed.reasoning:
        target.reasoning += parsed.reasoning
    for call in parsed.calls:
        if target.tool_calls and target.tool_calls[-1].index == call.index:
            target.tool_calls[-1].arguments += call.arguments
        else:
            target.tool_calls.add(index=call.index, id=call.id, name=call.name, arguments=call.arguments)


def write_timings(target: pb.Timings, delta: Delta, now: float) -> None:
    """What is known of a request's course at its end; stages that it did not reach stay 0."""
    finished = delta.finished if delta.finished is not None else now
    scheduled = delta.first_scheduled if delta.first_scheduled is not None else finished
    target.queue_seconds = scheduled - delta.arrival
    target.total_seconds = finished - delta.arrival
    if delta.first_token is not None:
        target.prefill_seconds = delta.first_token - scheduled
        target.first_token_seconds = delta.first_token - delta.arrival
        target.decode_seconds = finished - delta.first_token


def response_of(chunks: Sequence[pb.GenerateChunk]) -> pb.GenerateResponse:
    """All chunks of a finished request as one answer."""
    samples: dict[int, list[pb.GenerateChunk]] = {}
    for chunk in chunks:
        samples.setdefault(chunk.index, []).append(chunk)
    response, *others = (_sample(samples[index]) for index in sorted(samples))
    response.others.extend(others)
    return response


def _sample(chunks: Sequence[pb.GenerateChunk]) -> pb.GenerateResponse:
    last = chunks[-1]
    calls: dict[int, pb.ToolCall] = {}
    for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
        call = calls.setdefault(delta.index, pb.ToolCall(id=delta.id, name=delta.name))
        call.arguments += delta.arguments
    return pb.GenerateResponse(
        request_id=last.request_id,
        text="".join(chunk.text for chunk in chunks),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
        prompt_logprobs=[entry for chunk in chunks for entry in chunk.prompt_logprobs],
        counts=last.counts,
        finish=last.finish,
        timings=last.timings,
        prompt_token_ids=[token for chunk in chunks for token in chunk.prompt_token_ids],
        reasoning="".join(chunk.reasoning for chunk in chunks),
        tool_calls=calls.values(),
    )


def load_response(load: Load) -> pb.GetLoadResponse:
    fields = {field.name: getattr(load, field.name) for field in dataclasses.fields(load)}
    return pb.GetLoadResponse(cache_usage=load.cache_usage, **fields)
