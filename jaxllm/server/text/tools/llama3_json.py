"""Llama 3.1 to 4: {"name": ..., "parameters": {...}}, with <|python_tag|> before it or without; several with ";"."""

from collections.abc import Sequence

from jaxllm.server.text.reading import BrokenError, Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class Llama3Json(ToolParser):
    special_tokens = ("<|python_tag|>",)
    openers = ("<|python_tag|>", "{")

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return json_calls(functions, several, key="parameters", between="; ")

    def section(self, opener: str) -> Course[None]:
        if opener == "{":  # any object: only one that names a tool is a call
            yield from self.json_call(opened=True, bare=True)
        else:
            yield from self.json_call()
        while (yield from self.skip(";")):
            if (yield from self.skip_space()) != "{":
                raise BrokenError("; without a call")
            yield from self.json_call(bare=True)
