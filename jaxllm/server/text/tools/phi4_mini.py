"""Phi-4 mini: functools[{"name": ..., "arguments": {...}}, ...]."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class Phi4Mini(ToolParser):
    special_tokens = ("<|tool_call|>", "<|/tool_call|>")
    openers = ("functools", "<|tool_call|>")
    closers = ("<|/tool_call|>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return json_calls(functions, several, before="functools[", between=", ", after="]")

    def section(self, opener: str) -> Course[None]:
        yield from self.json_calls()
