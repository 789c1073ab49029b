"""From the engine's chunks to a Response: its output items, and the events that tell of them one by one."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.answers import scored, timed
from jaxllm.server.http.errors import ApiError
from jaxllm.server.http.forms import check_nesting
from jaxllm.server.http.responses.items import Item, make_id, wrap
from jaxllm.server.http.responses.reading import ENCRYPTED, ResponsesRequest
from jaxllm.server.http.sections import Section, SectionedAnswer

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}
MAX_NESTING = 100
"""Lists and objects in each other that are sent back, of what a client has sent."""
ENDED = ("completed", "incomplete", "failed", "cancelled")


class ResponseAnswer(SectionedAnswer):
    """The answer to a ResponsesRequest, as generation.Answer describes it.

    Attributes:
        input: the items that the answer follows, those of earlier responses included.
        status: of the response, in OpenAI's words.
        size: bytes of its input and of what is echoed, as JSON.
    """

    id_header = b"x-request-id"
    idle_events = b""

    def __init__(self, request: ResponsesRequest, model: str, history: Sequence[Item]):
        """Raises UnicodeEncodeError where something that is sent back is no text, RequestError where it is nested too
        deep."""
        super().__init__(request)
        self.id = f"resp_{uuid.uuid4().hex}"
        self.streaming = bool(request.stream)
        self.background = bool(request.background)
        self.input = (*history, *request.input)
        self.status = "queued" if self.background else "in_progress"
        self._echo = _echo(request) | {"model": model}
        for name, value in self._echo.items():
            check_nesting(value, MAX_NESTING, name)
        self.size = len(json.dumps([self._echo, self.input], ensure_ascii=False).encode())
        self._wraps = ENCRYPTED in (request.include or ())
        self._timed = bool(request.return_timings)
        self._created = int(time.time())
        self._completed: int | None = None
        self._error: dict[str, str] | None = None
        self._ids: list[str] = []  # of the items, by section
        self._events: list[bytes] = []
        self._sequence = 0
        if self.background:
            self._tell_status("created")
            self._tell_status("queued")

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def view(self) -> dict[str, Any]:
        """The Response as it is now."""
        reason = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        usage = {"usage": self._usage()} if self._begun and self.ended else {}
        timings = {"timings": timed(self.choice.timings)} if self._timed and self.choice.finish else {}
        return {
            "id": self.id, "object": "response", "created_at": self._created, "status": self.status,
            "completed_at": self._completed, "error": self._error, "incomplete_details": reason,
            "output": self.output, **usage, **timings, **self._echo,
        }  # fmt: skip

    @property
    def output(self) -> list[Item]:
        return [self._item(section) for section in self.sections]

    def body(self) -> bytes:
        return to_json(self.view())

    def take_events(self) -> list[bytes]:
        """The events since the last call; their sequence numbers count from 0."""
        events, self._events = self._events, []
        return events

    def events(self) -> bytes:
        return b"".join(self.take_events())

    def last_events(self) -> bytes:
        return b""  # the last one has told of the end

    def error_events(self, error: ApiError) -> bytes:
        self.fail(error)
        return self.events()

    def fail(self, error: ApiError) -> None:
        """It ended without its answer."""
        self.status = "failed"
        self._error = {
            "code": {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(error.status, "server_error"),
            "message": error.message,
        }
        if not self._begun and not self.background:
            self._tell_status("created")
        self._tell_status("failed")

    def cancel(self) -> None:
        """Nobody wants it any more."""
        if not self.ended:
            self.status = "cancelled"

    # --- what there is to tell ---

    def begun(self) -> None:
        self.status = "in_progress"
        if not self.background:
            self._tell_status("created")
        self._tell_status("in_progress")

    def opened(self, section: Section) -> None:
        self._ids.append(make_id(_PREFIXES[section.kind]))
        item = self._item(section)
        if section.kind == "call":
            self._tell("output_item.added", section, item=item)
            return
        self._tell("output_item.added", section, item=item | {"content": []})
        self._tell("content_part.added", section, content_index=0, part=item["content"][0])

    def extended(self, section: Section, piece: str, logprobs: list[pb.TokenLogprob]) -> None:
        if section.kind == "call":
            self._tell("function_call_arguments.delta", section, delta=piece)
        elif section.kind == "reasoning":
            self._tell("reasoning_text.delta", section, content_index=0, delta=piece)
        else:
            told = [scored(entry) for entry in logprobs]
            self._tell("output_text.delta", section, content_index=0, delta=piece, logprobs=told)

    def closed(self, section: Section) -> None:
        item = self._item(section)
        if section.kind == "call":
            self._tell("function_call_arguments.done", section, name=section.name, arguments=item["arguments"])
        else:
            part = item["content"][0]
            if section.kind == "text":
                self._tell(
                    "output_text.done", section, content_index=0, text=part["text"], logprobs=part["logprobs"]
                )  # fmt: skip
            else:
                self._tell("reasoning_text.done", section, content_index=0, text=part["text"])
            self._tell("content_part.done", section, content_index=0, part=part)
        self._tell("output_item.done", section, item=item)

    def finished(self) -> None:
        if not self.sections:  # clients look for a message
            self._section("text")
            self._close(complete=not self.cut_off)
        if self.cut_off:
            self.status = "incomplete"
        else:
            self.status = "completed"
            self._completed = int(time.time())
        self._tell_status(self.status)

    def _item(self, section: Section) -> Item:
        status = "in_progress" if section.open and not self.ended else "completed" if section.complete else "incomplete"
        head: Item = {"id": self._ids[section.place], "status": status}
        if section.kind == "call":
            return head | {
                "type": "function_call", "call_id": section.call_id, "name": section.name, "arguments": section.text,
            }  # fmt: skip
        if section.kind == "text":
            logprobs = [scored(entry) for entry in section.logprobs]
            part = {"type": "output_text", "text": section.text, "annotations": [], "logprobs": logprobs}
            return head | {"type": "message", "role": "assistant", "content": [part]}
        content = [{"type": "reasoning_text", "text": section.text}]
        wrapped = {"encrypted_content": wrap(section.text)} if self._wraps else {}
        return head | {"type": "reasoning", "summary": [], "content": content, **wrapped}

    def _usage(self) -> dict[str, Any]:
        counts = self.choice.counts
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
            "output_tokens": counts.completion,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning},
            "total_tokens": counts.prompt + counts.completion,
        }

    def _tell_status(self, event: str) -> None:
        self._emit(f"response.{event}", {"response": self.view()})

    def _tell(self, event: str, section: Section, **fields: Any) -> None:
        place: dict[str, Any] = {"output_index": section.place}
        if "item" not in fields:
            place["item_id"] = self._ids[section.place]
        self._emit(f"response.{event}", place | fields)

    def _emit(self, kind: str, fields: dict[str, Any]) -> None:
        if not self.streaming:
            return
        data = to_json({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        self._events.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), data))


def _echo(request: ResponsesRequest) -> dict[str, Any]:
    """What a response repeats of its request, with the defaults that were taken."""
    form = request.text.format if request.text else None
    tools = [
        {
            "type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            "strict": bool(tool.strict),
        }
        for tool in request.tools
    ]  # fmt: skip
    labels = ("user", "safety_identifier", "prompt_cache_key")
    return {
        "background": bool(request.background),
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": request.reasoning.model_dump(exclude_unset=True) if request.reasoning else None,
        "store": request.stored,
        "temperature": request.temperature,
        "text": {"format": form.model_dump(exclude_unset=True, by_alias=True) if form else {"type": "text"}},
        "tool_choice": request.tool_choice,
        "tools": tools,
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        **{label: value for label in labels if (value := getattr(request, label)) is not None},
    }
