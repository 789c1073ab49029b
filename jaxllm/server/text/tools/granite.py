"""Granite 3: <|tool_call|>[{"name": ..., "arguments": {...}}, ...]; Granite 20B: <function_call> {...} for each."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class Granite(ToolParser):
    special_tokens = ("<|tool_call|>", "<tool_call>", "</tool_call>")
    openers = ("<|tool_call|>", "<tool_call>")
    closers = ("</tool_call>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return json_calls(functions, several, before="<|tool_call|>[", between=", ", after="]")

    def section(self, opener: str) -> Course[None]:
        yield from self.json_calls()


class Granite20B(ToolParser):
    special_tokens = ("<function_call>",)
    openers = ("<function_call>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return json_calls(functions, several, each="<function_call> ", between="\n")

    def section(self, opener: str) -> Course[None]:
        yield from self.json_call()
