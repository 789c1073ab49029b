"""Phi-4 mini: functools[{"name": ..., "arguments": {...}}, ...]."""

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser


class Phi4Mini(ToolParser):
    special_tokens = ("<|tool_call|>", "<|/tool_call|>")
    openers = ("functools", "<|tool_call|>")
    closers = ("<|/tool_call|>",)

    def section(self, opener: str) -> Course[None]:
        yield from self.json_calls()
