"""Granite 3: <|tool_call|>[{"name": ..., "arguments": {...}}, ...]; Granite 20B: <function_call> {...} for each."""

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser


class Granite(ToolParser):
    special_tokens = ("<|tool_call|>", "<tool_call>", "</tool_call>")
    openers = ("<|tool_call|>", "<tool_call>")
    closers = ("</tool_call>",)

    def section(self, opener: str) -> Course[None]:
        yield from self.json_calls()


class Granite20B(ToolParser):
    special_tokens = ("<function_call>",)
    openers = ("<function_call>",)

    def section(self, opener: str) -> Course[None]:
        yield from self.json_call()
