"""Hermes 2 and 3, Qwen 2.5 and 3, SmolLM 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, one per call."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class Hermes(ToolParser):
    special_tokens = ("<tool_call>", "</tool_call>")
    openers = ("<tool_call>",)
    closers = ("</tool_call>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return json_calls(functions, several, each="<tool_call>\n", end="\n</tool_call>", between="\n")

    def section(self, opener: str) -> Course[None]:
        yield from self.json_call()
