"""InternLM 2 and 2.5: <|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>, one per call."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class InternLM(ToolParser):
    special_tokens = ("<|action_start|>", "<|plugin|>", "<|action_end|>")
    openers = ("<|action_start|>",)
    closers = ("<|action_end|>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        each, end = "<|action_start|><|plugin|>\n", "<|action_end|>"
        return json_calls(functions, several, key="parameters", each=each, end=end, between="\n")

    def section(self, opener: str) -> Course[None]:
        yield from self.expect("<|plugin|>")  # <|interpreter|> runs code instead: no call of a tool
        yield from self.json_call()
