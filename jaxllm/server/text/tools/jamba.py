"""Jamba: <tool_calls>[{"name": ..., "arguments": {...}}, ...]</tool_calls>."""

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser


class Jamba(ToolParser):
    special_tokens = ("<tool_calls>", "</tool_calls>")
    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)

    def section(self, opener: str) -> Course[None]:
        yield from self.json_calls()
