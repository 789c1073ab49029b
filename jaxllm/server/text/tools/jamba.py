"""Jamba: <tool_calls>[{"name": ..., "arguments": {...}}, ...]</tool_calls>."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class Jamba(ToolParser):
    special_tokens = ("<tool_calls>", "</tool_calls>")
    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        before, after = "<tool_calls>[\n  ", "\n]</tool_calls>"
        return json_calls(functions, several, before=before, between=",\n  ", after=after)

    def section(self, opener: str) -> Course[None]:
        yield from self.json_calls()
