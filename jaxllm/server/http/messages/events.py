"""From the engine's chunks to a Message: its content blocks, and the events that tell of them one by one."""

import hashlib
import uuid
from typing import Any

from pydantic_core import from_json, to_json

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.answers import timed
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.messages.reading import MessagesRequest
from jaxllm.server.http.sections import Section, SectionedAnswer


class MessageAnswer(SectionedAnswer):
    """The answer to a MessagesRequest, as generation.Answer describes it."""

    id_header = b"request-id"

    def __init__(self, request: MessagesRequest, model: str):
        super().__init__(request)
        self.id = f"msg_{uuid.uuid4().hex}"
        self.streaming = bool(request.stream)
        self.idle_events = _event("ping", {})
        self._max_tokens = request.max_tokens
        self._timed = bool(request.return_timings)
        self._shows_thinking = not (request.thinking and request.thinking.display == "omitted")
        self._head: dict[str, Any] = {"id": self.id, "type": "message", "role": "assistant", "model": model}
        self._events: list[bytes] = []

    def body(self) -> bytes:
        content = [self._block(section) for section in self.sections]
        answer = {**self._head, "content": content, **self._end(), "usage": self._usage(), **self._timings()}
        return to_json(answer, inf_nan_mode="null")  # inputs are what the model wrote

    def events(self) -> bytes:
        events, self._events = self._events, []
        return b"".join(events)

    def last_events(self) -> bytes:
        return _event("message_stop", self._timings())

    def error_events(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + error.anthropic_body() + b"\n\n"

    # --- what there is to tell ---

    def begun(self) -> None:
        end = {"stop_reason": None, "stop_sequence": None}
        self._emit("message_start", message={**self._head, "content": [], **end, "usage": self._usage()})
        self._emit("ping")

    def opened(self, section: Section) -> None:
        block = self._block(section)
        if section.kind == "reasoning":
            block["signature"] = ""
        self._emit("content_block_start", index=section.place, content_block=block)

    def extended(self, section: Section, piece: str, logprobs: list[pb.TokenLogprob]) -> None:
        if section.kind == "text":
            delta = {"type": "text_delta", "text": piece}
        elif section.kind == "call":
            delta = {"type": "input_json_delta", "partial_json": piece}
        elif self._shows_thinking:
            delta = {"type": "thinking_delta", "thinking": piece}
        else:
            return
        self._emit("content_block_delta", index=section.place, delta=delta)

    def closed(self, section: Section) -> None:
        if section.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": _signature(section.text)}
            self._emit("content_block_delta", index=section.place, delta=delta)
        self._emit("content_block_stop", index=section.place)

    def finished(self) -> None:
        self._emit("message_delta", delta=self._end(), usage=self._usage())

    def _block(self, section: Section) -> dict[str, Any]:
        if section.kind == "text":
            return {"type": "text", "text": section.text, "citations": None}
        if section.kind == "call":
            return {"type": "tool_use", "id": section.call_id, "name": section.name, "input": _input(section.text)}
        text = section.text
        return {"type": "thinking", "thinking": text if self._shows_thinking else "", "signature": _signature(text)}

    def _end(self) -> dict[str, Any]:
        finish, sequence = self.choice.finish, None
        assert finish is not None
        if self.cut_off:
            reached = self.choice.counts.completion >= self._max_tokens
            reason = "max_tokens" if reached else "model_context_window_exceeded"
        elif finish.HasField("stop_string"):
            reason, sequence = "stop_sequence", finish.stop_string
        else:
            reason = "tool_use" if self.choice.calls_tools else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self) -> dict[str, Any]:
        """Input that was found in the prefix cache is counted apart, as Anthropic does."""
        counts = self.choice.counts
        return {
            "input_tokens": counts.prompt - counts.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.cached,
            "output_tokens": counts.completion,
            "output_tokens_details": {"thinking_tokens": counts.reasoning},
        }

    def _timings(self) -> dict[str, Any]:
        return {"timings": timed(self.choice.timings)} if self._timed else {}

    def _emit(self, kind: str, **fields: Any) -> None:
        if self.streaming:
            self._events.append(_event(kind, fields))


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json({"type": kind, **fields}))


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as far as they go: an answer that was cut off may end within them."""
    try:
        written = from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return written if isinstance(written, dict) else {}


def _signature(thinking: str) -> str:
    """Clients leave out thinking that bears none when they send an answer back. This server takes any."""
    return hashlib.sha256(thinking.encode()).hexdigest()
