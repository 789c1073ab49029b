"""gpt-oss's answers: messages on channels, each <|start|>assistant<|channel|>CHANNEL<|message|>TEXT<|end|>.

The analysis channel is reasoning; the final one, and a commentary for the user, are content; a message with a
recipient, to=functions.NAME in its header, is a call whose arguments are its text.

Read here, and not by OpenAI's library for the format, because that one loads a vocabulary of its own over the network
and reads token ids of that vocabulary alone.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.server.text.reading import BrokenError, Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, calls, sequence, text, thought
from jaxllm.server.tool_choice import MAX_NAME, is_name

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_ANALYSIS = re.compile(r"(?:<\|channel\|>|^)\s*analysis\b")


class Harmony(ToolParser):
    special_tokens = (_START, _CHANNEL, "<|constrain|>", _MESSAGE, *_ENDS)

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        reasoning: bool = True,
        calls: bool = True,
        continued: bool = False,
    ):
        """reasoning, calls: whether these are told from content. continued: the answer begins within its final text."""
        self._reasoning = self.may_reason = reasoning
        self._calls = calls
        self._continued = continued
        self._line_due = False
        self._reasoned = False
        super().__init__(tools)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        """One call: its end ends the turn."""
        return calls(
            functions, False, lambda name: f"{_CHANNEL}commentary to=functions.{name} <|constrain|>json{_MESSAGE}", ""
        )

    @classmethod
    def written_content(cls, content: Format) -> Format:
        """An answer for the user."""
        return sequence(text(f"{_CHANNEL}final{_MESSAGE}"), content)

    @classmethod
    def written_turn(cls, last: Format) -> Format:
        """A turn with its last message, before which the model may think."""
        return sequence(thought(f"{_CHANNEL}analysis{_MESSAGE}", f"{_ENDS[0]}{_START}assistant"), last)

    def read(self) -> Course[None]:
        # The prompt ends with <|start|>assistant: the first message's header is open.
        mark = ""
        if not self._continued and ((yield from self.follows(" to=")) or (yield from self.follows("to="))):
            mark = _START
        while True:
            if mark in (_START, _CHANNEL):
                self._raw = [mark]
                try:
                    mark = yield from self._message(mark)
                except BrokenError:
                    self.give_up()
                    mark = ""
            else:
                mark = yield from self.until(self.content, _START, _CHANNEL, *_ENDS)
                if not mark:
                    break
        if not self._behind_call:
            self.out.content.append(self._space)

    def _message(self, mark: str) -> Course[str]:
        """A message behind the mark that begins its header; the mark behind it."""
        header, _ = yield from self.text_until(_MESSAGE, limit=MAX_NAME)
        self._raw.clear()
        recipient = _RECIPIENT.search(header)
        if recipient is not None and self._calls and is_name(recipient[1]):
            self.begin(recipient[1])
            if (yield from self.skip_space()) == "{":
                yield from self.json_value(self.arguments)
                self.end()
                return (yield from self.until(self.content, _START, *_ENDS))
            return (yield from self.until(self.arguments, _START, *_ENDS))
        if self._reasoning and _ANALYSIS.search(header if mark == _START else _CHANNEL + header):
            self._line_due = self._reasoned
            self.reasons = True
            mark = yield from self.until(self._reason, _START, *_ENDS)
            self.reasons = False
            return mark
        if self._any_content:
            self._space += "\n"
        return (yield from self.until(self.content, _START, *_ENDS))

    def _reason(self, text: str) -> None:
        self.out.reasoning.append(("\n" if self._line_due else "") + text)
        self._line_due = False
        self._reasoned = True
