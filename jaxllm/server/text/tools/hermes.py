"""Hermes 2 and 3, Qwen 2.5 and 3, SmolLM 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one per call."""

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser


class Hermes(ToolParser):
    special_tokens = ("<tool_call>", "</tool_call>")
    openers = ("<tool_call>",)
    closers = ("</tool_call>",)

    def section(self, opener: str) -> Course[None]:
        yield from self.json_call()
